"""Follows a study that other processes play: which points run, which have ended since the last look, how long the rest takes.

A look costs one listing of DIR/points, and a few file attributes for each point that has begun and not finished. Files are read
only where they changed: point.json of points that ended, run.h5 of points that run.
"""

import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from math import isnan
from pathlib import Path

from flora_hpc.errors import UserError
from flora_hpc.records import views
from flora_hpc.records.follow import PATIENCE, FollowedRun, Snapshot
from flora_hpc.records.study import FOLDER, INDEX, NAN, ROW, Point, newest, read_index
from flora_hpc.records.studytime import expected_seconds, seconds_left

ENDED = ("finished", "failed", "stopped")
SETTLED = 15.0  # seconds without a change until a study with stopped points has stopped: another point may be about to begin
RECENT = 20  # rounds from which the rate is computed
LOOKS = 30  # among which the one with most running points says how many run at a time
Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class RunningPoint:
    """A point whose run is played now. `run` is None while its run.h5 cannot be read."""

    point: Point
    run: Snapshot | None = None

    @property
    def round(self) -> int:
        """The last round that ended."""
        return int(self.run.rounds["round"].max(initial=0)) if self.run else 0

    @property
    def num_rounds(self) -> int:
        """Planned number of rounds; 0 where not known."""
        return self.run.num_rounds if self.run else 0

    @cached_property
    def accuracy(self) -> float:
        """The newest test accuracy; NaN before the first."""
        if self.run is None:
            return NAN
        measured = views.accuracies(self.run.rounds)["test_accuracy"]
        return float(measured[-1]) if len(measured) else NAN

    @cached_property
    def seconds_per_round(self) -> float:
        """Mean over the last trained rounds; NaN before the first."""
        if self.run is None or not (trained := self.run.rounds["round"] > 0).any():
            return NAN
        return float(self.run.rounds["round_seconds"][trained][-RECENT:].mean())

    @property
    def seconds_left(self) -> float:
        """Seconds to the end of this run; NaN before the first trained round."""
        since = self.run.silent if self.run else 0.0
        return self.seconds_per_round * (self.num_rounds - self.round) - min(since, self.seconds_per_round)


@dataclass(frozen=True)
class StudySnapshot:
    """The state of a study at one moment."""

    folder: Path
    points: tuple[Point, ...]  # in the order of the grid
    running: tuple[RunningPoint, ...] = ()
    ended: tuple[Point, ...] = ()  # since the snapshot before, in the order in which they ended
    history: tuple[Point, ...] = ()  # all that ended, in that order
    seconds_left: float | None = None  # of the whole study; None while there is nothing to estimate it from
    silent: float = 0.0  # seconds since a file of the study changed

    @cached_property
    def counts(self) -> dict[str, int]:
        """The number of points by status."""
        counts: dict[str, int] = {}
        for point in self.points:
            counts[point.status] = counts.get(point.status, 0) + 1
        return counts

    def count(self, status: str) -> int:
        """How many points have a status."""
        return self.counts.get(status, 0)

    @property
    def num_done(self) -> int:
        """How many points need not be played any more: finished or failed."""
        return self.count("finished") + self.count("failed")

    @property
    def status(self) -> str:
        """waiting before the first point begins, running, or how the study ended: finished, failed or stopped."""
        if self.points and self.count("waiting") == len(self.points):
            return "waiting"
        is_stopped = self.count("stopped") > 0 and self.silent >= SETTLED
        if self.count("running") or (self.count("waiting") and not is_stopped):
            return "running"
        return next((status for status in ("stopped", "failed") if self.count(status)), "finished")

    @property
    def doubt(self) -> str:
        """A sentence that the study may have been killed, after a minute of silence or more; else empty."""
        return f"last written {views.seconds(self.silent)} ago; its job may have been killed" if self.given_up(60.0) else ""

    def given_up(self, least: float) -> bool:
        """Whether nobody should wait for the study: nothing has changed for `least` seconds, and every running point is overdue."""
        if self.status != "running" or self.silent < least:
            return False
        return all(point.run is None or point.run.status != "running" or point.run.given_up(least) for point in self.running)


class FollowedStudy:
    """The files of a study, looked at again and again. A resumed study goes on with its stopped and failed points."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self.folder, self._clock = folder.parent if folder.name == INDEX else folder, clock
        self._points: dict[str, Point] = {}  # in the order of the grid
        self._history: dict[str, Point] = {}  # the points that ended, in that order
        self._stamps: dict[str, Stamp] = {}  # of point.json of these points
        self._runs: dict[str, FollowedRun] = {}  # of running points
        self._unreadable: dict[str, int] = {}  # number of looks at a damaged point.json
        self._index_stamp: Stamp | None = None
        self._index_failures = 0
        self._changed = 0.0
        self._expected: dict[str, float] = {}
        self._numbers_running: deque[int] = deque(maxlen=LOOKS)

    def poll(self) -> StudySnapshot | None:
        """The study now; None before it is written. Raises UserError for a directory whose study.h5 cannot be read."""
        is_new_index = self._read_index()
        if self._index_stamp is None:
            return None
        folders = self._folders()
        ended: list[tuple[int, Point]] = []
        for name, point in self._points.items():
            if name in folders and point.status != "finished" and (time_ended := self._look(name)):
                ended.append((time_ended, self._points[name]))
        ended.sort(key=lambda pair: pair[0])
        for time_ended, point in ended:
            self._history.pop(point.name, None)  # a resumed point ends once more
            self._history[point.name] = point
            self._note_change(time_ended / 1e9)
        if ended or is_new_index:
            self._expected = expected_seconds(tuple(self._points.values()))
        return self._snapshot(tuple(point for _, point in ended))

    def _snapshot(self, ended: tuple[Point, ...]) -> StudySnapshot:
        points = tuple(self._points.values())
        running = tuple(self._running(point) for point in points if point.status == "running")
        self._numbers_running.append(len(running))
        left = seconds_left(
            [self._expected.get(each.point.name, NAN) if isnan(each.seconds_left) else each.seconds_left for each in running],
            [self._expected.get(point.name, NAN) for point in points if point.status in ("waiting", "stopped")],
            max(self._numbers_running),
        )
        silences = [self._clock() - self._changed, *(each.run.silent for each in running if each.run)]
        return StudySnapshot(self.folder, points, running, ended, tuple(self._history.values()), left, max(0.0, min(silences)))

    def _read_index(self) -> bool:
        """Read study.h5 where it has changed. Returns whether it was read."""
        stamp = stamp_of(self.folder / INDEX)
        if stamp is None or stamp == self._index_stamp:
            return False
        try:
            rows = read_index(self.folder)
        except UserError:
            self._index_failures += 1
            if self._index_stamp is None or self._index_failures >= PATIENCE:
                raise
            return False
        self._note_change(stamp[1] / 1e9)
        self._index_stamp, self._index_failures = stamp, 0
        is_alone = not (self.folder / FOLDER).is_dir()  # a copy of study.h5; otherwise point.json has the results
        fresh = rows if is_alone else [Point(row.name, row.keys) for row in rows]
        self._points = {point.name: self._points.get(point.name, point) for point in fresh}
        return True

    def _note_change(self, moment: float) -> None:
        """A file was written. Before the first look its own time counts, later ours: clocks of nodes differ."""
        is_first = self._index_stamp is None or not self._numbers_running
        self._changed = max(self._changed, min(self._clock(), moment) if is_first else self._clock())

    def _folders(self) -> set[str]:
        """The points that have a directory: the others are waiting."""
        try:
            with os.scandir(self.folder / FOLDER) as entries:
                return {entry.name for entry in entries}
        except OSError:
            return set()

    def _look(self, name: str) -> int | None:
        """Look at a point that has not finished. Returns when it ended (ns), if that is new."""
        point, place = self._points[name], self.folder / FOLDER / name
        stamp = stamp_of(place / ROW)
        if stamp is not None and stamp != self._stamps.get(name):
            row = newest(self.folder, point)
            if row.status in ENDED and self._is_readable(row, place / ROW):
                self._points[name], self._stamps[name] = row, stamp
                self._runs.pop(name, None)
                return stamp[1]
            stamp = None  # half written: as if it were not there
        run_stamp = stamp_of(place / "run.h5")
        if stamp is None:
            status = "waiting" if run_stamp is None else "running"
        elif run_stamp is not None and run_stamp[1] > stamp[1] and self._is_played_again(name):
            status = "running"
        else:
            return None
        if status != point.status:
            self._points[name] = replace(Point(name, point.keys), status=status)
            self._note_change(run_stamp[1] / 1e9 if run_stamp else 0.0)
        return None

    def _is_readable(self, row: Point, file: Path) -> bool:
        """Whether a row is what its file says; a file that cannot be read is tried again, but not for ever."""
        if row.status == "failed" and row.message.startswith(str(file)):
            self._unreadable[row.name] = self._unreadable.get(row.name, 0) + 1
            return self._unreadable[row.name] >= PATIENCE
        return True

    def _is_played_again(self, name: str) -> bool:
        """Whether the run of a stopped or failed point, which is newer than its point.json, has begun again."""
        run = self._follow(name)
        return run is not None and run.status == "running"

    def _running(self, point: Point) -> RunningPoint:
        return RunningPoint(point, self._follow(point.name))

    def _follow(self, name: str) -> Snapshot | None:
        """The run of a point; None while its file cannot be read."""
        run = self._runs.setdefault(name, FollowedRun(self.folder / FOLDER / name, self._clock))
        try:
            return run.poll()
        except (UserError, OSError):
            return None


def stamp_of(file: Path) -> Stamp | None:
    """What differs when a file has changed; None where there is none."""
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
