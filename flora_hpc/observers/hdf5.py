"""Writes run.h5 and config.yaml into the run directory."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flora_hpc import screen
from flora_hpc.errors import UserError, lock_cure, reason
from flora_hpc.records import disk
from flora_hpc.records.hdf5file import Writer
from flora_hpc.records.known import RoundRecord, RunInfo


class Hdf5:
    """Owns run.h5 from the first round to the last."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Writer | None = None

    def started(self, info: RunInfo) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            part = self._folder / "config.yaml.part"
            part.write_text(info.config, encoding="utf-8")
            disk.commit(part, self._folder / "config.yaml")
            self._writer = Writer(self._folder / "run.h5", info)
        except (OSError, RuntimeError) as error:  # HDF5 gives either for a full disk
            cure = "; make room on its disk, or make it writable" if info.earlier else "; choose a directory that can"
            raise UserError(f"--out {self._folder}: cannot be written ({reason(error)}){lock_cure(error) or cure}") from None

    def round(self, record: RoundRecord) -> None:
        assert self._writer is not None
        with self._explaining_errors():
            self._writer.add(record)
            self._writer.note_screen(screen.loss())

    def ended(self, status: str) -> None:
        """Close the file. After a failed run errors of the file are ignored: the error that ended the run counts."""
        if self._writer is not None:
            with self._explaining_errors() if status in ("finished", "stopped") else suppress(OSError, RuntimeError):
                self._writer.note_screen(screen.loss())
                self._writer.close(status)

    @contextmanager
    def _explaining_errors(self) -> Iterator[None]:
        """Raise UserError when the file can no longer be written; the rounds that are in it can still be read."""
        try:
            yield
        except (OSError, RuntimeError) as error:  # HDF5 gives either for a full disk
            log, why = self._folder / "run.h5", reason(error)
            raise UserError(f"{log}: can no longer be written ({why}); make room on its disk, and go on with --resume") from None


def build(folder: Path) -> Hdf5:
    return Hdf5(folder)
