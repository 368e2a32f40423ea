"""run.h5: written while a run goes on (SWMR), readable at any moment, whole after any death."""

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from flora_hpc.errors import UserError
from flora_hpc.records import disk, split, superblock
from flora_hpc.records.known import Earlier, RoundRecord, RunInfo
from flora_hpc.records.schema import COLUMNS, FORMAT, SCHEMA, TABLES, Rows

CHUNK_ROWS = 256
SPARE_BYTES = 2**16  # room at its end for what HDF5 may write there: a file that it could not flush it cannot close either
STATUS, SCREEN = h5py.string_dtype("utf-8", 16), h5py.string_dtype("utf-8", 256)  # of fixed length: changed while readers look on
BY_ROUND = ("rounds", "ranks", "clients")  # tables whose rows belong to a round
DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError)  # what h5py makes of it
PAUSES = (0.02, 0.05, 0.1, 0.2)  # seconds between attempts; a round is written in a few milliseconds


class Writer:
    """The file of one run. Rows are flushed with every round, those of /rounds last: a round that is there is complete.

    A run that goes on copies its earlier rows into a new file, which then takes the old one's place.
    """

    def __init__(self, path: Path, info: RunInfo) -> None:
        self._path, self._lost, self._screen = path, False, ""
        if path.exists() and not info.earlier:
            raise FileExistsError(f"{path} is there already")
        new = path.with_name(f"{path.name}.part")  # a run that is killed meanwhile leaves no half file
        self._file = h5py.File(new, "w", libver=FORMAT, locking=False)  # some file systems have no locks; `owner` is the lock
        try:
            with self._let_go_of_what_fails():
                self._begin(info)
            disk.commit(new, path)
        except (OSError, RuntimeError):
            with suppress(OSError):
                new.unlink()
            raise

    def _begin(self, info: RunInfo) -> None:
        attributes = {
            "schema": SCHEMA,
            "seed": info.seed,
            "config": info.config,
            "versions": json.dumps(info.versions),
            "launcher": info.launcher,
            "backend": info.backend,
            "world_size": info.world_size,
            "dataset": info.dataset,
            "features": info.features,
            "features_made_by": info.features_made_by,
            "num_features_computed": info.num_features_computed,
            "num_damaged": info.num_damaged,
            "left_out": json.dumps(dict(info.left_out)),
            "warnings": json.dumps(info.warnings),
            "identity": json.dumps(dict(info.identity)),
            "plugins": json.dumps(dict(info.plugins)),
            "num_clients": info.num_clients,
            "num_params": info.num_params,
            "payload_bytes": info.payload_bytes,
            "how": info.how,
            "group_size": info.group_size,
            "num_groups": info.num_groups,
            "setup_seconds": info.setup_seconds,
            "resumed_after": json.dumps(info.earlier.resumed_after if info.earlier else []),
            "extended_after": json.dumps(info.earlier.extended_after if info.earlier else []),
        }
        self._file.attrs.update({name: _text(value) for name, value in attributes.items()})
        self._file.attrs.create("status", "running", dtype=STATUS)
        self._file.attrs.create("screen", "", dtype=SCREEN)
        self._tables = {  # looked up once: by name in every round, they would take longer than what is written
            name: self._file.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(CHUNK_ROWS,))
            for name, dtype in TABLES.items()
        }
        for name, fields in COLUMNS.items():
            of_columns = {"column": [field.name for field in fields], "unit": [field.unit for field in fields]}
            self._tables[name].attrs.update(of_columns | {"description": [field.meaning for field in fields]})
        if info.split is not None:
            split.write(self._file, info.split)
        self._append("topology", info.topology)
        for name in ("clients", "ranks", "rounds") if info.earlier else ():
            self._append(name, getattr(info.earlier, name))
        self._file.swmr_mode = True  # from here on neither attributes nor tables can be added
        self._file.flush()

    def _append(self, table: str, rows: Rows) -> None:
        dataset = self._tables[table]
        with self._let_go_of_what_fails():
            before = len(dataset)
            dataset.resize(before + len(rows), axis=0)
            if len(rows):
                dataset[before:] = rows
            dataset.flush()

    @contextmanager
    def _let_go_of_what_fails(self) -> Iterator[None]:
        """When the disk takes no more, leave the file there as a kill would leave it, and HDF5 a copy in memory.

        HDF5 writes what is left whenever it closes a file, at the exit of the process too, and crashes where it cannot.
        """
        try:
            yield
        except (OSError, RuntimeError):
            if not self._lost:
                self._lost = True
                opened, memory = self._file.id.get_vfd_handle(), os.memfd_create("run.h5")
                with open(opened, "rb", closefd=False) as lost, open(memory, "wb") as copy:
                    lost.seek(0)
                    shutil.copyfileobj(lost, copy)
                    copy.flush()
                    os.dup2(memory, opened)
            raise

    def add(self, record: RoundRecord) -> None:
        self._append("clients", record.clients)
        self._append("ranks", record.ranks)
        self._append("rounds", record.row)

    def note_screen(self, loss: str) -> None:
        """Note what of the run's output was lost or changed, and why."""
        if loss != self._screen and not self._lost:
            with self._let_go_of_what_fails():
                self._file.attrs.modify("screen", np.bytes_(loss.encode()[: SCREEN.itemsize]))
            self._screen = loss

    def close(self, status: str) -> None:
        """Note how the run ended: finished, stopped, interrupted or failed. A file that was let go of stays as it is."""
        own = os.dup(self._file.id.get_vfd_handle())  # by its path it might be that of a run that went on meanwhile
        try:
            if not self._lost:
                with self._let_go_of_what_fails():
                    self._file.attrs.modify("status", np.bytes_(status))
                    os.pwrite(own, bytes(SPARE_BYTES), os.fstat(own).st_size)
                    os.fsync(own)
                    self._file.flush()
            self._file.close()
            if not self._lost:
                os.ftruncate(own, superblock.end_of(own))
        finally:
            os.close(own)


def earlier(run: Path, last: int, logged: int, told: list[str]) -> Earlier:
    """What a run that goes on after round `last` holds up to round `logged`; rows of rounds that will be played again are left out.

    `told` is why newer checkpoints are not used. Raises UserError for a file that is not a run's.
    """
    attributes, tables = read(run)
    kept = {name: rows[rows["round"] <= logged] for name, rows in tables.items() if name != "topology"}
    resumed, extended = (json.loads(attributes.get(name, "[]")) for name in ("resumed_after", "extended_after"))
    extended += [last] if attributes["status"] == "finished" else []
    return Earlier(**kept, resumed_after=[*resumed, last], told=told, extended_after=extended)


def locate(run: Path) -> Path:
    """The run.h5 of a run directory, or the file itself. Raises UserError when there is none."""
    if not run.exists():
        raise UserError(f"{run}: holds no run, for it is not there; give a run directory or its run.h5")
    path = run / "run.h5" if run.is_dir() else run
    if not path.is_file():
        inside = sorted(run.glob("*/run.h5"), key=lambda file: file.stat().st_mtime) if run.is_dir() else []
        hint = f"did you mean {inside[-1].parent}?" if inside else "give a run directory or its run.h5"
        raise UserError(f"{run}: holds no run (looked for {path}); {hint}")
    return path


def read(run: Path, names: Sequence[str] = tuple(TABLES)) -> tuple[dict[str, Any], dict[str, Rows]]:
    """Attributes and the tables `names` of a run, finished or not, without rows of a round that is not finished.

    Columns and attributes are those of the file: one of an old version lacks some. Neither blocks nor disturbs a writer. Raises
    UserError for a file that is not a run's.
    """
    path = locate(run)
    for pause in PAUSES:
        try:
            return _read_once(path, names)
        except DAMAGE:  # or a block that is just being written
            time.sleep(pause)
    try:
        return _read_once(path, names)
    except DAMAGE as error:
        raise UserError(f"{path}: {_reason(path, error)}") from None


def _read_once(path: Path, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Rows]]:
    with path.open("rb") as raw, superblock.open_file(path, raw) as file:
        attributes = {name: _plain(value) for name, value in file.attrs.items()}
        _check(path, file, attributes)
        tables = {name: np.asarray(file[name][:]) for name in ("rounds", *names) if name in file}  # rounds are written last
    last = tables["rounds"]["round"].max(initial=-1)
    ends = {name: np.searchsorted(tables[name]["round"], last, "right") for name in BY_ROUND if name in tables}  # rounds ascend
    return attributes, {name: rows[: ends.get(name)] for name, rows in tables.items()}


def _text(value: Any) -> Any:
    """What HDF5 takes as UTF-8, which has no lone surrogates: Python's sign for a byte of a file name that is no text."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return value.decode(errors="ignore") if isinstance(value, bytes) else value  # one that was cut may end within a character


def _check(path: Path, file: h5py.File, attributes: dict[str, Any]) -> None:
    """Raise UserError when it is not the file of a run that this version can read."""
    schema = attributes.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise UserError(f"{path}: was written by a newer flora-hpc (schema {schema}, here {SCHEMA}); update flora-hpc")
    kinds = [file[name].dtype.names or () if isinstance(file.get(name), h5py.Dataset) else () for name in BY_ROUND]
    if not (isinstance(schema, int) and "config" in attributes and all("round" in names for names in kinds)):
        raise UserError(f"{path}: is an HDF5 file, but not one that flora-hpc wrote; give a run directory or its run.h5")


def _reason(path: Path, error: Exception) -> str:
    """Why a file cannot be read, and what can be done."""
    if isinstance(error, PermissionError):
        return "you may not read it; ask its owner for the right to"
    if not path.exists():
        return "was removed while it was read; give a run directory or its run.h5"
    if path.stat().st_size == 0:
        return "is empty, as a full disk leaves it; nothing of the run is in it"
    with path.open("rb") as file:
        if file.read(len(superblock.SIGNATURE)) != superblock.SIGNATURE:
            return "is not an HDF5 file; give a run directory or its run.h5"
    why = " ".join(str(error).split())
    if superblock.is_open(path):
        return f"cannot be read just now ({why}); try again, or, if its run has ended, copy it again from where the run was"
    what = "is cut off" if "truncated" in str(error) else "is damaged"
    return f"{what} ({why}); copy it again from where the run was, or run it again"
