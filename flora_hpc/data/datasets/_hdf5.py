"""Objects of an HDF5 file from elsewhere, checked before they are used: kind, filters, and whether they were written."""

import json
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from glob import escape, glob
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from flora_hpc import filekinds
from flora_hpc.data.datasets._filters import missing_filter
from flora_hpc.data.datasets._paths import file_at
from flora_hpc.data.texts import fault, name_fault
from flora_hpc.errors import UserError, lock_cure, reason

NEEDS = (
    "a file needs the datasets images and labels in train and in test, "
    "and the attributes class_names (a JSON list) and encoding (raw, jpeg, png or files)"
)


@dataclass(frozen=True)
class Reader:
    """An open HDF5 file. Every access either gives what it should or raises UserError with the file, the place and the cure."""

    path: Path
    file: h5py.File

    @classmethod
    def open(cls, path: Path) -> "Reader":
        """Open a file for reading, without a lock: nobody may write it meanwhile, and some file systems have none."""
        path = file_at("data.path", path, "*.h5")
        try:
            return cls(path, h5py.File(path, "r", locking=False))
        except Exception as error:  # HDF5 lets anything through on broken files
            raise UserError(f"data.path: {path} is not an HDF5 file that can be read ({_why_closed(path, error)}") from None

    def mistake(self, text: str) -> UserError:
        """The error that names this file."""
        return UserError(f"data.path: {self.path}: {text}")

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """Turn whatever HDF5 raises on broken files into a UserError."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise self.mistake(f"{what} cannot be read ({reason(error)}); write or fetch the file again") from None

    def require(self, objects: tuple[str, ...], attributes: tuple[str, ...]) -> None:
        """Raise UserError, naming all that is missing."""
        with self.reading("the list of its objects"):
            missing = [name for name in objects if self._link(name) is None]
            missing += [f"attribute {name}" for name in attributes if name not in self.file.attrs]
        if missing:
            raise UserError(f"data.path: {self.path} lacks {', '.join(missing)}; {NEEDS}")

    def _link(self, name: str) -> Any:
        """The first link on the way to an object that leads nowhere, or the last one; None where there is none at all."""
        link, at = None, ""
        for part in name.split("/"):
            at = f"{at}/{part}"
            link = self.file.get(at, getlink=True)
            if link is None or self.file.get(at) is None:
                break
        return link

    def dataset(self, name: str) -> h5py.Dataset:
        """The dataset of this name, which can be decoded here and has been written."""
        with self.reading(name):
            table = self.file.get(name)
            if isinstance(table, h5py.Group):
                raise self.mistake(f"{name} is a group of {len(table):,} objects; write one dataset")
            if table is None:
                raise self.mistake(f"{name} is {_leads_to(self._link(name))}; write the dataset itself, or bring that file")
            if not isinstance(table, h5py.Dataset):
                raise self.mistake(f"{name} is a datatype; write a dataset")
            if table.shape is None:
                raise self.mistake(f"{name} is empty (it has no dataspace); write its values")
            self.check_storage(name, table)
        return table

    def check_storage(self, name: str, dataset: h5py.Dataset) -> None:
        """Refuse a dataset whose values cannot be had here. HDF5 gives zeros in silence where a source or a block is missing."""
        if dataset.is_virtual:
            self._check_virtual(name, dataset)
        if dataset.external is not None and dataset.size:
            try:
                _ = dataset[(0,) * dataset.ndim]  # HDF5 looks for such files when it reads
            except OSError:
                self._open_external(name, dataset)
                raise
            self._check_external(name, dataset)
        if (need := missing_filter(dataset)) is not None:
            raise self.mistake(f"{name} is compressed with {need}")
        if not dataset.is_virtual and dataset.external is None and 0 < _num_blocks(dataset) != _num_written(dataset):
            raise self.mistake(f"parts of {name} have never been written, so they would be read as zeros; write the file again")

    def _check_virtual(self, name: str, dataset: h5py.Dataset) -> None:
        """Refuse a virtual dataset if a source is missing, too small or never written, or if some of its values have no source."""
        sizes: list[float] = []
        for source in dataset.virtual_sources():
            shown = f"{source.file_name}:{source.dset_name}"
            places = self._places(source.file_name)
            if not places:
                raise self.mistake(f"{name} is put together from {shown}, which is not there; bring that file")
            for place in places:
                self._check_source(name, shown, source, place)
            sizes.append(_num_values(source.vspace))
        if sum(sizes) < dataset.size:
            raise self.mistake(
                f"{name} has sources for {sum(sizes):,.0f} of its {dataset.size:,} values, so the others would be read as zeros; "
                "write the file again"
            )

    def _check_source(self, name: str, shown: str, source: Any, place: Path) -> None:
        with self._source(name, shown, place) as file:
            values = file.get(source.dset_name)
            if not isinstance(values, h5py.Dataset):
                if "%" in source.dset_name:  # a pattern of numbers
                    return
                raise self.mistake(f"{name} is put together from {shown}, which is not there; bring that file")
            with suppress(ValueError, RuntimeError):  # of a selection without an end
                last = source.src_space.get_select_bounds()[1]
                if len(last) == values.ndim and any(at >= length for at, length in zip(last, values.shape, strict=True)):
                    raise self.mistake(
                        f"{name} is put together from {shown}, which is too small for it ({values.shape}); write it again"
                    )
            Reader(place, file).check_storage(source.dset_name, values)

    def _source(self, name: str, shown: str, place: Path) -> AbstractContextManager[h5py.File]:
        """The open file of a virtual dataset's source."""
        if place == self.path:
            return nullcontext(self.file)
        try:
            return h5py.File(place, "r", locking=False)  # type: ignore[no-any-return]
        except Exception as error:
            raise self.mistake(
                f"{name} is put together from {shown}; {place} cannot be read ({_why_closed(place, error)}"
            ) from None

    def _places(self, file_name: str) -> list[Path]:
        """The files of a virtual dataset's source: one, or those of a pattern with %b.

        HDF5 looks beside the file, then in the working folder.
        """
        if file_name == ".":
            return [self.path]
        for folder in (self.path.parent, Path()):
            place = folder / file_name.replace("%%", "%")
            if "%b" in file_name:
                parts = map(escape, str(folder / file_name).split("%b"))
                if matches := sorted(map(Path, glob("[0-9]*".join(parts)))):  # noqa: PTH207 -- Path.glob takes no whole path
                    return matches
            elif place.is_file():
                return [place]
        return []

    def _check_external(self, name: str, dataset: h5py.Dataset) -> None:
        """Refuse a dataset whose values lie in files that are too short."""
        num_bytes = dataset.size * dataset.dtype.itemsize
        for file_name, offset, size in dataset.external:
            place, size = _external(self.path, file_name), min(size, num_bytes)
            num_there = place.stat().st_size
            if num_there < offset + size:
                raise self.mistake(
                    f"{name} lies in {place}, which has {num_there:,} bytes of {offset + size:,}; copy or fetch that again"
                )
            num_bytes -= size

    def _open_external(self, name: str, dataset: h5py.Dataset) -> None:
        """Say which file of a dataset's values cannot be opened, and why; HDF5 says neither."""
        for file_name, _, _ in dataset.external:
            place = _external(self.path, file_name)
            try:
                place.open("rb").close()
            except OSError as error:
                why = reason(error)
                raise self.mistake(f"{name} lies in {place}, which cannot be read ({why}); bring it, or make it readable") from None

    def sources(self, dataset: h5py.Dataset) -> list[Path]:
        """The other files that hold a dataset's values."""
        places = [Path(dataset.file.filename), *(_external(self.path, name) for name, _, _ in dataset.external or ())]
        for source in dataset.virtual_sources() if dataset.is_virtual else ():
            places += self._places(source.file_name)
        return [place for place in dict.fromkeys(places) if place != self.path]

    def has(self, attribute: str) -> bool:
        """Whether there is an attribute of this name."""
        with self.reading(f"attribute {attribute}"):
            return attribute in self.file.attrs

    def text(self, attribute: str) -> str:
        """An attribute that is one text; other tools write it as bytes or as an array of one."""
        with self.reading(f"attribute {attribute}"):
            value = self.file.attrs[attribute]
        if isinstance(value, np.ndarray) and value.size == 1:
            value = value.reshape(-1)[0]
        try:
            text = value.decode() if isinstance(value, bytes) else value
        except UnicodeDecodeError:
            raise self.mistake(f"attribute {attribute} is not UTF-8; write it in that encoding") from None
        if not isinstance(text, str):
            raise self.mistake(f"attribute {attribute} is {_short(value)}; it must be one text")
        if (sign := fault(text)) is not None:
            raise self.mistake(f"attribute {attribute} holds {sign}; write it without")
        return text.strip()

    def names(self, attribute: str) -> tuple[str, ...]:
        """An attribute that is a JSON list of texts, none of them blank."""
        with self.reading(f"attribute {attribute}"):
            value = self.file.attrs[attribute]
        shown = f"attribute {attribute} must be a JSON list of texts, not {_short(value)}; write json.dumps(names)"
        if isinstance(value, np.ndarray) and value.size != 1:
            raise self.mistake(shown)
        try:
            names = json.loads(self.text(attribute))
        except (ValueError, RecursionError):
            raise self.mistake(shown) from None
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise self.mistake(shown)
        for i, name in enumerate(names):
            sign = "nothing but blanks" if not name.strip() else name_fault(name)
            if sign is not None:
                raise self.mistake(f"attribute {attribute}: name {i} holds {sign}; give each class a name")
        return tuple(names)


def _num_values(selection: Any) -> float:
    """How many values a selection has; infinity for one without an end, for which HDF5 has no number."""
    try:
        return float(selection.get_select_npoints())
    except RuntimeError:
        return math.inf


def _external(path: Path, file_name: str) -> Path:
    """The file of an external dataset. HDF5 looks in the working folder; where it was told another one, that is the file's own."""
    place = Path(file_name)
    return place if place.is_file() else path.parent / place


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:80]}..."


def _why_closed(path: Path, error: Exception) -> str:
    """The rest of the sentence that says why a file cannot be opened, and what to do."""
    text = reason(error)
    if "already open for" in text or "consistency flags" in text:
        return "it is still being written, or its writer was killed); wait for the writer, or run h5clear -s on it"
    if "truncated" in text:
        return f"{text}); the file is cut off: copy or fetch it again"
    if path.stat().st_size == 0:
        return "it is empty); write or fetch it again"
    if (what := filekinds.kind(path)) not in (None, filekinds.HDF5):
        return f"it is {what}); {NEEDS}"
    if isinstance(error, PermissionError):
        return f"{text}); make it readable"
    if cure := lock_cure(error):
        return f"{text}){cure}"
    return f"{text}); {NEEDS}"


def _leads_to(link: Any) -> str:
    if isinstance(link, h5py.SoftLink):
        return f"a link to {link.path}, where nothing is"
    if isinstance(link, h5py.ExternalLink):
        return f"a link to {link.path} of the file {link.filename}, which cannot be opened"
    return "an object that cannot be opened"


def _num_blocks(dataset: h5py.Dataset) -> int:
    """Blocks of values that a whole dataset has: its chunks, or one."""
    if dataset.chunks is None:
        return 1 if dataset.size else 0
    return math.prod(-(-length // chunk) for length, chunk in zip(dataset.shape, dataset.chunks, strict=True))


def _num_written(dataset: h5py.Dataset) -> int:
    """Blocks of values that have been written."""
    if dataset.chunks is None:
        return 1 if dataset.id.get_storage_size() else 0
    return int(dataset.id.get_num_chunks())
