"""The classes that clients hold: a small group of run.h5, written once when a run starts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from flora_hpc.errors import UserError, reason
from flora_hpc.records import superblock

GROUP = "split"


@dataclass(frozen=True)
class Split:
    """Examples by client and class: of all clients where they are few, else of some spread evenly over all."""

    clients: npt.NDArray[np.int64]  # (num_shown,) ids, ascending
    counts: npt.NDArray[np.int64]  # (num_shown, num_classes)
    classes: tuple[str, ...]  # their names


def write(file: h5py.File, split: Split) -> None:
    """Add the group, before SWMR starts: SWMR allows no new group, and no names of variable length."""
    group = file.create_group(GROUP)
    group["client"] = split.clients
    counts = split.counts.astype(np.min_scalar_type(int(split.counts.max(initial=0))))
    group.create_dataset("counts", data=counts, **({"compression": "gzip"} if counts.size else {}))
    names = [name.encode(errors="backslashreplace") for name in split.classes]  # bytes of a folder name may be no text
    group.create_dataset("class", data=np.array(names, h5py.string_dtype("utf-8", max(map(len, names), default=1) or 1)))


def read(path: Path) -> Split | None:
    """Read the split of a run.h5, also while it is being written; None for files without one, such as those before schema 4."""
    try:
        with path.open("rb") as raw, superblock.open_file(path, raw) as file:
            if GROUP not in file:
                return None
            client, counts, names = (file[GROUP][name][:] for name in ("client", "counts", "class"))
    except (OSError, RuntimeError, KeyError, ValueError) as error:  # that h5py raises for a damaged file
        cure = "make it readable" if isinstance(error, PermissionError) else "the file is damaged"
        raise UserError(f"{path}: its /split cannot be read ({reason(error)}); {cure}") from None
    return Split(client, counts.astype(np.int64), tuple(_text(name) for name in names))


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
