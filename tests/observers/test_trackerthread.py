import threading
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest

from flora_hpc.observers import _trackerthread
from flora_hpc.observers._background import Background
from flora_hpc.observers._tracker import Start
from flora_hpc.observers._trackerthread import Trackers, TrackerThread
from flora_hpc.observers.hdf5 import Hdf5
from flora_hpc.records import hdf5file
from flora_hpc.records.known import Earlier
from flora_hpc.records.schema import ROUNDS, Rows
from tests.contracts.known_helpers import round_record, run_info

NEVER = 1000.0  # seconds: a test that waits for them fails by its timeout


class Fake:
    """Notes what it is told; holds some rounds already, raises `error` when it is told `fails_at`, and may wait for a word."""

    def __init__(self, fails_at: str | int | None = None, error: BaseException | None = None, held: Collection[int] = ()) -> None:
        self.heard: list[str | int] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.starts: list[Start] = []
        self._fails_at, self._error, self._held = fails_at, error or OSError("network\nis down"), held

    def _hear(self, word: str | int) -> None:
        assert self.may_go_on.wait(30)
        if word == self._fails_at:
            raise self._error
        self.heard.append(word)

    def start(self, run: Start) -> Collection[int]:
        self.starts.append(run)
        self._hear("start")
        return self._held

    def log(self, row: Rows) -> None:
        self._hear(int(row["round"][0]))

    def end(self, status: str) -> None:
        self._hear(status)


def earlier(*rounds: int) -> Earlier:
    records = [round_record(number) for number in rounds]
    tables = (np.concatenate([getattr(record, part) for record in records]) for part in ("row", "ranks", "clients"))
    return Earlier(*tables, resumed_after=[rounds[-1]])


def play(tracker: Fake, folder: Path, first: int = 0, **changes: object) -> None:
    """A run of rounds to 3 with its log, as a simulation tells of it."""
    observer = Background([Hdf5(folder), TrackerThread("fake", folder, tracker, NEVER)])
    observer.started(run_info(**changes))
    for number in range(first, 4):
        observer.round(round_record(number))
    observer.flush()
    observer.ended("finished")


def warnings(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_it_passes_on_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Fake()
    play(tracker, tmp_path)
    assert tracker.heard == ["start", 0, 1, 2, 3, "finished"]
    (start,) = tracker.starts
    assert (start.folder, start.resumed) == (tmp_path, False)
    assert (start.parameters["method.name"], start.parameters["cohort.size"], start.parameters["run.world_size"]) == ("flora", 3, 2)
    assert warnings(capsys) == []


@pytest.mark.parametrize("error", [OSError("network\nis down"), SystemExit(1), KeyboardInterrupt()], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("fails_at", ["start", 0, 3, "finished"])
def test_one_that_fails_is_named_once_and_the_run_goes_on(
    fails_at: str | int, error: BaseException, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = Fake(fails_at, error)
    play(tracker, tmp_path)
    words = ["start", 0, 1, 2, 3, "finished"]
    assert tracker.heard == words[: words.index(fails_at)], "and nothing more"
    why = " ".join(f"{type(error).__name__}: {error}".split())
    assert warnings(capsys) == [f"warning: fake is left out from here on ({why}); run.h5 has everything"]
    attributes, tables = hdf5file.read(tmp_path)
    assert attributes["status"] == "finished"
    assert tables["rounds"]["round"].tolist() == [0, 1, 2, 3]


def test_one_that_hangs_holds_up_no_round_and_the_end_only_for_a_while(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Fake()
    tracker.may_go_on.clear()
    tracker_thread = TrackerThread("fake", tmp_path, tracker, patience_seconds=0.01)
    tracker_thread.started(run_info())
    for number in range(100):
        tracker_thread.round(round_record(number))
    tracker_thread.ended("finished")
    assert warnings(capsys) == [
        "warning: fake is left out from here on (has not taken the last of it within 0.01 s); run.h5 has everything"
    ]
    tracker.may_go_on.set()


def test_what_waits_for_one_that_lags_is_bounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Fake()
    tracker.may_go_on.clear()
    tracker_thread = TrackerThread("fake", tmp_path, tracker, NEVER, most_waiting=3)
    tracker_thread.started(run_info())
    for number in range(10):
        tracker_thread.round(round_record(number))
    tracker_thread.ended("finished")  # at once
    assert warnings(capsys) == ["warning: fake is left out from here on (is 3 rounds behind); run.h5 has everything"]
    tracker.may_go_on.set()
    assert tracker_thread._thread is not None
    tracker_thread._thread.join(30)
    assert tracker.heard == ["start", "left out"], "it may close its run"


def test_trackers_share_the_time_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One hangs; the other hears the status all the same, and before."""
    monkeypatch.setattr(_trackerthread, "PATIENCE_SECONDS", 0.2)
    hanging, well = Fake(), Fake()
    hanging.may_go_on.clear()
    together = Trackers([TrackerThread("hanging", tmp_path, hanging), TrackerThread("well", tmp_path, well)])
    together.started(run_info())
    together.round(round_record(0))
    together.ended("finished")
    assert well.heard == ["start", 0, "finished"]
    (warning,) = warnings(capsys)
    assert warning.startswith("warning: hanging is left out from here on (has not taken the last of it")
    hanging.may_go_on.set()


def test_a_run_that_goes_on_tells_what_was_missed_and_nothing_twice(tmp_path: Path) -> None:
    """The tracker missed round 1, and holds round 2, which is played again after the resume."""
    Hdf5(tmp_path).started(run_info())
    tracker = Fake(held={0, 2})
    play(tracker, tmp_path, first=2, earlier=earlier(0, 1))
    assert tracker.heard == ["start", 1, 3, "finished"]
    assert tracker.starts[0].resumed


def test_what_the_round_after_writes_into_a_row_does_not_reach_a_tracker(tmp_path: Path) -> None:
    rows = []
    tracker = Fake()
    tracker.may_go_on.clear()
    tracker.log = rows.append  # type: ignore[method-assign, assignment]
    tracker_thread = TrackerThread("fake", tmp_path, tracker, NEVER)
    tracker_thread.started(run_info())
    record = round_record(1, accuracy=0.5)
    tracker_thread.round(record)
    record.row["test_accuracy"] = 0.0
    tracker.may_go_on.set()
    tracker_thread.ended("finished")
    assert [(row.dtype, row["test_accuracy"].tolist()) for row in rows] == [(ROUNDS, [0.5])]


def test_the_end_may_come_before_the_start(tmp_path: Path) -> None:
    tracker = Fake()
    TrackerThread("fake", tmp_path, tracker).ended("failed")
    assert tracker.heard == []
