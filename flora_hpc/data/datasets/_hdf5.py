"""Read objects of a user's HDF5 file. Each is checked before use: its kind, its filters, and whether it was written."""

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
    """An open HDF5 file. Every method gives a checked value, or raises UserError with file, object and cure."""

    path: Path
    file: h5py.File

    @classmethod
    def open(cls, path: Path) -> "Reader":
        """Open a file for reading, without a lock, which some file systems lack. Nobody may write the file meanwhile."""
        path = file_at("data.path", path, "*.h5")
        try:
            return cls(path, h5py.File(path, "r", locking=False))
        except Exception as error:  # h5py raises anything on broken files
            raise UserError(f"data.path: {path} is not an HDF5 file that can be read ({_why_closed(path, error)}") from None

    def mistake(self, text: str) -> UserError:
        """A UserError that names this file."""
        return UserError(f"data.path: {self.path}: {text}")

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """Turn any error of h5py, while it reads `what`, into a UserError."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise self.mistake(f"{what} cannot be read ({reason(error)}); write or fetch the file again") from None

    def require(self, objects: tuple[str, ...], attributes: tuple[str, ...]) -> None:
        """Raise UserError, with all missing names, unless the file has these objects and attributes."""
        with self.reading("the list of its objects"):
            missing = [name for name in objects if self._link(name) is None]
            missing += [f"attribute {name}" for name in attributes if name not in self.file.attrs]
        if missing:
            raise UserError(f"data.path: {self.path} lacks {', '.join(missing)}; {NEEDS}")

    def _link(self, name: str) -> Any:
        """The first broken link in the path of an object, else its last link; None where a link is missing."""
        link, path = None, ""
        for part in name.split("/"):
            path = f"{path}/{part}"
            link = self.file.get(path, getlink=True)
            if link is None or self.file.get(path) is None:
                break
        return link

    def dataset(self, name: str) -> h5py.Dataset:
        """The dataset `name`, after a check that it was written and can be decoded here."""
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
        """Refuse a dataset with missing values. HDF5 reads zeros, without an error, where a source or a block is missing."""
        if dataset.is_virtual:
            self._check_virtual(name, dataset)
        if dataset.external is not None and dataset.size:
            try:
                _ = dataset[(0,) * dataset.ndim]  # HDF5 opens external files when it reads
            except OSError:
                self._open_external(name, dataset)
                raise
            self._check_external(name, dataset)
        if (need := missing_filter(dataset)) is not None:
            raise self.mistake(f"{name} is compressed with {need}")
        if not dataset.is_virtual and dataset.external is None and 0 < _num_blocks(dataset) != _num_written(dataset):
            raise self.mistake(f"parts of {name} have never been written, so they would be read as zeros; write the file again")

    def _check_virtual(self, name: str, dataset: h5py.Dataset) -> None:
        """Refuse a virtual dataset with a source that is missing, too small or never written, or with values without a source."""
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
        """Refuse a source, in the file `place`, that is missing, too small or never written."""
        with self._source(name, shown, place) as file:
            values = file.get(source.dset_name)
            if not isinstance(values, h5py.Dataset):
                if "%" in source.dset_name:  # a pattern of numbers
                    return
                raise self.mistake(f"{name} is put together from {shown}, which is not there; bring that file")
            with suppress(ValueError, RuntimeError):  # a selection without an end has no bounds
                last = source.src_space.get_select_bounds()[1]
                if len(last) == values.ndim and any(index >= length for index, length in zip(last, values.shape, strict=True)):
                    raise self.mistake(
                        f"{name} is put together from {shown}, which is too small for it ({values.shape}); write it again"
                    )
            Reader(place, file).check_storage(source.dset_name, values)

    def _source(self, name: str, shown: str, place: Path) -> AbstractContextManager[h5py.File]:
        """Open the file of a virtual dataset's source."""
        if place == self.path:
            return nullcontext(self.file)
        try:
            return h5py.File(place, "r", locking=False)  # type: ignore[no-any-return]
        except Exception as error:
            raise self.mistake(
                f"{name} is put together from {shown}; {place} cannot be read ({_why_closed(place, error)}"
            ) from None

    def _places(self, file_name: str) -> list[Path]:
        """The files of a virtual dataset's source: one file, or all files that match a pattern with %b.

        HDF5 searches the folder of the file, then the working folder.
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
        """Refuse a dataset whose external files are too short."""
        num_bytes = dataset.size * dataset.dtype.itemsize
        for file_name, offset, size in dataset.external:
            place, size = _external(self.path, file_name), min(size, num_bytes)
            file_bytes = place.stat().st_size
            if file_bytes < offset + size:
                raise self.mistake(
                    f"{name} lies in {place}, which has {file_bytes:,} bytes of {offset + size:,}; copy or fetch that again"
                )
            num_bytes -= size

    def _open_external(self, name: str, dataset: h5py.Dataset) -> None:
        """Raise UserError with the external file that cannot be opened, and the reason; HDF5 tells neither."""
        for file_name, _, _ in dataset.external:
            place = _external(self.path, file_name)
            try:
                place.open("rb").close()
            except OSError as error:
                why = reason(error)
                raise self.mistake(f"{name} lies in {place}, which cannot be read ({why}); bring it, or make it readable") from None

    def sources(self, dataset: h5py.Dataset) -> list[Path]:
        """The other files that hold values of a dataset."""
        places = [Path(dataset.file.filename), *(_external(self.path, name) for name, _, _ in dataset.external or ())]
        for source in dataset.virtual_sources() if dataset.is_virtual else ():
            places += self._places(source.file_name)
        return [place for place in dict.fromkeys(places) if place != self.path]

    def has(self, attribute: str) -> bool:
        """Whether the file has an attribute of this name."""
        with self.reading(f"attribute {attribute}"):
            return attribute in self.file.attrs

    def text(self, attribute: str) -> str:
        """An attribute that is one text. Other tools write bytes, or an array of one text."""
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
    """Number of values of a selection; infinity for a selection without an end."""
    try:
        return float(selection.get_select_npoints())
    except RuntimeError:
        return math.inf


def _external(path: Path, file_name: str) -> Path:
    """The path of an external file. HDF5 searches the working folder, or the folder of the file if it is set so."""
    place = Path(file_name)
    return place if place.is_file() else path.parent / place


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:80]}..."


def _why_closed(path: Path, error: Exception) -> str:
    """Why a file cannot be opened, and what to do: the rest of a sentence, with its closing bracket."""
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
    """What a broken link is, for a message."""
    if isinstance(link, h5py.SoftLink):
        return f"a link to {link.path}, where nothing is"
    if isinstance(link, h5py.ExternalLink):
        return f"a link to {link.path} of the file {link.filename}, which cannot be opened"
    return "an object that cannot be opened"


def _num_blocks(dataset: h5py.Dataset) -> int:
    """Number of blocks of a whole dataset: its chunks, or one."""
    if dataset.chunks is None:
        return 1 if dataset.size else 0
    return math.prod(-(-length // chunk) for length, chunk in zip(dataset.shape, dataset.chunks, strict=True))


def _num_written(dataset: h5py.Dataset) -> int:
    """Number of blocks that have been written."""
    if dataset.chunks is None:
        return 1 if dataset.id.get_storage_size() else 0
    return int(dataset.id.get_num_chunks())
