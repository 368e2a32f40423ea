"""run.h5: written during a run (SWMR), readable at any moment, intact after any crash."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

from flora_hpc.errors import UserError
from flora_hpc.records import disk, split, storage, superblock
from flora_hpc.records.known import RoundRecord, RunInfo
from flora_hpc.records.schema import COLUMNS, FORMAT, SCHEMA, SETUP, TABLES, Rows

T = TypeVar("T")
SPARE_BYTES = 2**16  # room at the end for the last writes of HDF5, which cannot close a file that it could not flush
STATUS, SCREEN = (
    h5py.string_dtype("utf-8", 16),
    h5py.string_dtype("utf-8", 256),
)  # fixed length: changed while readers have the file open
BY_ROUND = ("rounds", "ranks", "clients")  # tables whose rows belong to a round
DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError)  # that h5py raises for a damaged file
PAUSES = (0.02, 0.05, 0.1, 0.2)  # seconds between attempts; a round is written in a few milliseconds


class Writer:
    """Writes the file of one run. Every round is flushed, its row of /rounds last: a round with that row is complete.

    A resumed run copies its earlier rows into a new file, which then replaces the old file.
    """

    def __init__(self, path: Path, info: RunInfo) -> None:
        self._path, self._detached, self._screen = path, False, ""
        if path.exists() and not info.earlier:
            raise FileExistsError(f"{path} is there already")
        new = path.with_name(f"{path.name}.part")  # a run that is killed here leaves no half file
        self._file = h5py.File(new, "w", libver=FORMAT, locking=False)  # some file systems have no locks; `owner` is the lock
        try:
            with self._detach_on_failure():
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
            "algorithm": info.algorithm,
            "num_private_params": info.num_private_params,
            "payload_bytes": info.payload_bytes,
            "how": info.how,
            "group_size": info.group_size,
            "num_groups": info.num_groups,
            "setup_seconds": info.setup_seconds,
            **{f"setup_{part}_seconds": info.setup_parts.get(part, np.nan) for part in SETUP},
            "resumed_after": json.dumps(info.earlier.resumed_after if info.earlier else []),
            "extended_after": json.dumps(info.earlier.extended_after if info.earlier else []),
        }
        self._file.attrs.update({name: _text(value) for name, value in attributes.items()})
        self._file.attrs.create("status", "running", dtype=STATUS)
        self._file.attrs.create("screen", "", dtype=SCREEN)
        self._tables = {  # looked up once: by name in every round, they would take longer than what is written
            name: self._file.create_dataset(name, (0,), dtype, maxshape=(None,), **storage.of(name, info.rows_per_round))
            for name, dtype in TABLES.items()
        }
        for name, fields in COLUMNS.items():
            descriptions = {"column": [field.name for field in fields], "unit": [field.unit for field in fields]}
            self._tables[name].attrs.update(descriptions | {"description": [field.meaning for field in fields]})
        if info.split is not None:
            split.write(self._file, info.split)
        self._append("topology", info.topology)
        if info.earlier is not None:
            for rows in info.earlier.clients:
                self._append("clients", rows)
            self._append("ranks", info.earlier.ranks)
            self._append("rounds", info.earlier.rounds)
        self._file.swmr_mode = True  # from here on neither attributes nor tables can be added
        self._file.flush()

    def _append(self, table: str, rows: Rows) -> None:
        dataset = self._tables[table]
        with self._detach_on_failure():
            before = len(dataset)
            dataset.resize(before + len(rows), axis=0)
            if len(rows):
                dataset[before:] = rows
            dataset.flush()

    @contextmanager
    def _detach_on_failure(self) -> Iterator[None]:
        """When a write fails, detach HDF5 from the file: the file stays as after a kill, HDF5 gets a copy in memory.

        HDF5 flushes a file when it closes it, also at the exit of the process, and crashes when the flush fails.

            before   HDF5 -> descriptor -> run.h5 on disk
            after    HDF5 -> descriptor -> copy in memory (memfd, dup2)     run.h5 on disk: unchanged from here on
        """
        try:
            yield
        except (OSError, RuntimeError):
            if not self._detached:
                self._detached = True
                descriptor, memory = self._file.id.get_vfd_handle(), os.memfd_create("run.h5")
                with open(descriptor, "rb", closefd=False) as file, open(memory, "wb") as copy:
                    file.seek(0)
                    shutil.copyfileobj(file, copy)
                    copy.flush()
                    os.dup2(memory, descriptor)
            raise

    def add(self, record: RoundRecord) -> None:
        self._append("clients", record.clients)
        self._append("ranks", record.ranks)
        self._append("rounds", record.row)

    def note_screen(self, loss: str) -> None:
        """Note which part of the run's output was lost or changed, and why."""
        if loss != self._screen and not self._detached:
            with self._detach_on_failure():
                self._file.attrs.modify("screen", np.bytes_(loss.encode()[: SCREEN.itemsize]))
            self._screen = loss

    def close(self, status: str) -> None:
        """Note the status (finished, stopped, interrupted or failed) and close. A detached file stays as it is."""
        descriptor = os.dup(self._file.id.get_vfd_handle())  # the path may lead to the file of a resumed run by now
        try:
            if not self._detached:
                with self._detach_on_failure():
                    self._file.attrs.modify("status", np.bytes_(status))
                    os.pwrite(descriptor, bytes(SPARE_BYTES), os.fstat(descriptor).st_size)
                    os.fsync(descriptor)
                    self._file.flush()
            self._file.close()
            if not self._detached:
                os.ftruncate(descriptor, superblock.end_of(descriptor))
        finally:
            os.close(descriptor)


def locate(run: Path) -> Path:
    """The run.h5 of a run directory, or the file itself. Raises UserError when there is none."""
    if not run.exists():
        raise UserError(f"{run}: holds no run, for it is not there; give a run directory or its run.h5")
    path = run / "run.h5" if run.is_dir() else run
    if not path.is_file():
        inside = sorted(run.glob("*/run.h5"), key=lambda file: file.stat().st_mtime) if run.is_dir() else []
        hint = f"did you mean {inside[-1].parent}?" if inside else "give a run directory or its run.h5"
        if (run / "study.yaml").exists():
            hint = "it is a study, for the commands `flora-hpc study show`, `report` and `watch`, and its runs are in points/"
        raise UserError(f"{run}: holds no run (looked for {path}); {hint}")
    return path


def read(run: Path, names: Sequence[str] = tuple(TABLES)) -> tuple[dict[str, Any], dict[str, Rows]]:
    """Read attributes and the tables `names` of a run, finished or not, without rows of unfinished rounds.

    Files of old versions lack some columns and attributes. Reading neither blocks nor disturbs a writer. Raises UserError for a
    file that is not a run's.
    """
    path = locate(run)
    return patiently(path, lambda: _read_once(path, names))


def patiently(path: Path, work: Callable[[], T]) -> T:
    """Read a file, again where a block is just being written. Raises UserError for a file that cannot be read."""
    for pause in PAUSES:
        try:
            return work()
        except DAMAGE:
            time.sleep(pause)
    try:
        return work()
    except DAMAGE as error:
        raise UserError(f"{path}: {_reason(path, error)}") from None


def opened(path: Path, work: Callable[[h5py.File], T]) -> T:
    """Do `work` with a file that its writer may have open."""
    with path.open("rb") as raw, superblock.open_file(path, raw) as file:
        return work(file)


def _read_once(path: Path, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Rows]]:
    with path.open("rb") as raw, superblock.open_file(path, raw) as file:
        attributes = {name: _plain(value) for name, value in file.attrs.items()}
        _check(path, file, attributes)
        tables = {name: np.asarray(file[name][:]) for name in ("rounds", *names) if name in file}  # rounds are written last
    last = tables["rounds"]["round"].max(initial=-1)
    ends = {name: np.searchsorted(tables[name]["round"], last, "right") for name in BY_ROUND if name in tables}  # rounds ascend
    return attributes, {name: rows[: ends.get(name)] for name, rows in tables.items()}


def _text(value: Any) -> Any:
    """Text as HDF5 takes it, UTF-8: lone surrogates, which stand for undecodable bytes of a file name, are escaped."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return value.decode(errors="ignore") if isinstance(value, bytes) else value  # a cut text may end within a character


def _check(path: Path, file: h5py.File, attributes: dict[str, Any]) -> None:
    """Raise UserError unless this is the file of a run that this version can read."""
    schema = attributes.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise UserError(f"{path}: was written by a newer flora-hpc (schema {schema}, here {SCHEMA}); update flora-hpc")
    kinds = [file[name].dtype.names or () if isinstance(file.get(name), h5py.Dataset) else () for name in BY_ROUND]
    if not (isinstance(schema, int) and "config" in attributes and all("round" in names for names in kinds)):
        raise UserError(f"{path}: is an HDF5 file, but not one that flora-hpc wrote; give a run directory or its run.h5")


def _reason(path: Path, error: Exception) -> str:
    """Why a file cannot be read, and the cure."""
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
    state = "is cut off" if "truncated" in str(error) else "is damaged"
    return f"{state} ({why}); copy it again from where the run was, or run it again"
