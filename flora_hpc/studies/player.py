"""Plays points on the ranks of one part of the world, and writes how each one ended."""

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from flora_hpc import loop, rundir
from flora_hpc.comm.communicator import AgreedError, Communicator, send_to_all, together
from flora_hpc.comm.devices import Neighbours
from flora_hpc.comm.launch import Launch
from flora_hpc.comm.stop import Stop
from flora_hpc.errors import StoppedError, UserError, reason
from flora_hpc.job import aborter, guarded
from flora_hpc.observers import hdf5
from flora_hpc.owner.claim import Claim
from flora_hpc.records import study
from flora_hpc.records.opened import open_run
from flora_hpc.records.study import FOLDER, Point
from flora_hpc.shared import Shared
from flora_hpc.studies import signac
from flora_hpc.studies.costs import Cost
from flora_hpc.studies.points import Planned

ERROR = "error.txt"  # in the directory of a point that a bug ended


class NotOursError(AgreedError):
    """A run directory that this study may not write, since another process owns it, for example."""


@dataclass(frozen=True)
class Player:
    """Plays points on the ranks of `comm`, a part of the job. `out` is the directory of the study."""

    out: Path
    comm: Communicator
    launch: Launch
    neighbours: Neighbours
    shared: Shared
    stop: Stop
    check_ownership: Callable[[], None]  # raises UserError when the study belongs to another process now
    say: Callable[[str], None]

    def play(self, points: Iterator[tuple[Planned, Cost]]) -> None:
        """Play the points, and write how each one ended. A point that another process plays stays as it is.

        An error of writing ends the job.
        """
        for planned, cost in points:
            with guarded(self.comm):
                self.check_ownership()
                try:
                    self.write(self.ended(planned, cost))
                except NotOursError as error:
                    self.say(str(error))

    def folder(self, planned: Planned) -> Path:
        """The run directory of a point."""
        return self.out / FOLDER / planned.point.name

    def ended(self, planned: Planned, cost: Cost) -> Point:
        """Play a point to its end; how it ended. Raises NotOursError where another process plays it.

        A bug on one of several ranks ends the job, since the other ranks of this part wait. The row of the point is written first.
        """
        try:
            if cost.unfit or (cost.is_bug and self.comm.size > 1):
                raise AgreedError(cost.unfit or cost.problem)
            self.run(planned)
        except StoppedError:
            return self.result(planned, "stopped")
        except NotOursError:
            raise
        except AgreedError as error:
            return replace(self.result(planned, "failed"), message=study.one_line(str(error)))
        except Exception as error:
            failed = replace(planned.point, status="failed", message=self.describe(error, self.folder(planned)))
            if self.comm.size > 1:
                with suppress(OSError):
                    study.write_row(self.out, failed)
                raise
            return replace(self.result(planned, "failed"), message=failed.message)
        return self.result(planned, "finished")

    def run(self, planned: Planned) -> None:
        """Begin or resume the run of a point."""
        started, folder = time.perf_counter(), self.folder(planned)
        launch = replace(self.launch, rank=self.comm.rank, size=self.comm.size)
        with Claim(folder, self.say) as claim:
            try:
                contents, _ = rundir.enter(self.comm, folder, planned.config, claim, resume=True)
            except AgreedError as error:
                if not send_to_all(self.comm, claim.owner.id.encode()):
                    raise NotOursError(str(error)) from None
                raise
            if contents.finished:
                return
            together(self.comm, lambda: self.prepare(planned, contents.unfinished) if self.comm.rank == 0 else None)
            options = loop.RunOptions(
                folder,
                lambda: [claim, hdf5.build(folder)],
                started=started,
                resume=contents.unfinished,
                abort_job=aborter(self.comm),
                check_ownership=claim.check,
                stop=self.stop,
                neighbours=self.neighbours,
                shared=self.shared,
            )
            loop.run(planned.config, self.comm, launch, options)

    def prepare(self, planned: Planned, resumes: bool) -> None:
        """Remove what an earlier start wrote about a point, and write its state point. Raises UserError where it may not begin."""
        folder = self.folder(planned)
        if resumes:
            rundir.check_plugins(folder)
        try:
            for name in (study.ROW, ERROR):
                (folder / name).unlink(missing_ok=True)
            signac.write_state_point(self.out, planned.point)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({reason(error)}); make room, and go on with --resume") from None

    def result(self, planned: Planned, status: str) -> Point:
        """The row of a point whose run ended with a status."""
        folder = self.folder(planned)
        if self.comm.rank == 0 and (folder / "run.h5").is_file():
            with suppress(UserError):  # a run.h5 that a full disk cut off
                return replace(study.result(planned.point, open_run(folder, ())), status=status)
        return replace(planned.point, status=status)

    def describe(self, error: Exception, folder: Path) -> str:
        """One line about an error; the trace of a bug is written beside the run."""
        if isinstance(error, UserError):
            return study.one_line(str(error))
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ERROR).write_text("".join(traceback.format_exception(error)), encoding="utf-8", errors="backslashreplace")
        return study.one_line(f"{type(error).__name__}: {reason(error)}; {folder / ERROR} has the trace")

    def write(self, point: Point) -> None:
        """Write the row of a point. Raises UserError where that is not possible."""
        if self.comm.rank:
            return
        try:
            study.write_row(self.out, point)
        except OSError as error:
            place = self.out / FOLDER / point.name
            raise UserError(f"{place}: cannot be written ({reason(error)}); make room, and go on with --resume") from None
