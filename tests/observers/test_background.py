import threading
from pathlib import Path
from typing import Any

import pytest

from flora_hpc.errors import UserError
from flora_hpc.observers._background import Background
from flora_hpc.observers.hdf5 import Hdf5
from flora_hpc.records import hdf5file
from flora_hpc.records.known import RoundRecord, RunInfo
from tests.contracts.known_helpers import round_record, run_info


class Listener:
    """Notes what it is told; may wait before a round, and fail at one."""

    def __init__(self, fails_at: int = -1) -> None:
        self.heard: list[Any] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self._fails_at = fails_at

    def started(self, info: RunInfo) -> None:
        self.heard.append("started")

    def round(self, record: RoundRecord) -> None:
        assert self.may_go_on.wait(30)
        number = int(record.row["round"][0])
        if number == self._fails_at:
            raise OSError("no space left")
        self.heard.append(number)

    def ended(self, status: str) -> None:
        self.heard.append(status)


def test_a_round_goes_on_while_the_one_before_is_written() -> None:
    listener = Listener()
    observer = Background([listener])
    observer.started(run_info())
    listener.may_go_on.clear()
    observer.round(round_record(0))
    assert listener.heard == ["started"], "and yet it returned"
    listener.may_go_on.set()
    observer.flush()
    assert listener.heard == ["started", 0]
    observer.ended("finished")


def test_observers_are_told_in_order_and_all_rounds_before_the_end() -> None:
    listeners = [Listener(), Listener()]
    observer = Background(listeners)
    observer.started(run_info())
    for number in range(20):
        observer.round(round_record(number))
    observer.flush()
    listeners[1].may_go_on.clear()
    observer.round(round_record(20))
    threading.Timer(0.1, listeners[1].may_go_on.set).start()
    observer.ended("interrupted")
    assert [listener.heard for listener in listeners] == [["started", *range(21), "interrupted"]] * 2


def test_an_error_ends_the_next_round() -> None:
    observer = Background([Listener(fails_at=0)])
    observer.round(round_record(0))
    with pytest.raises(OSError, match="no space left"):
        observer.round(round_record(1))
    observer.ended("failed")


def test_an_error_in_the_last_round_is_raised_before_the_run_has_finished() -> None:
    observer = Background([Listener(fails_at=1)])
    observer.round(round_record(0))
    observer.round(round_record(1))
    with pytest.raises(OSError, match="no space left"):
        observer.flush()
    observer.ended("failed")


def test_all_are_told_the_end_although_one_of_them_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A live view that is not told would leave the terminal without its cursor."""
    failing, other = Listener(), Listener()

    def fail(status: str) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(failing, "ended", fail)
    with pytest.raises(OSError, match="no space left"):
        Background([failing, other]).ended("failed")
    assert other.heard == ["failed"]


def test_a_full_disk_is_told_in_a_sentence_and_the_rounds_before_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    observer = Background([Hdf5(tmp_path)])
    observer.started(run_info())
    observer.round(round_record(0))
    observer.flush()

    def full(*args: object) -> None:
        raise RuntimeError("Unable to flush\n, errno = 28, No space left on device")

    monkeypatch.setattr(hdf5file.Writer, "add", full)
    observer.round(round_record(1))
    with pytest.raises(UserError, match=r"run\.h5: can no longer be written \(.* No space left on device\); make room on its disk"):
        observer.round(round_record(2))
    observer.ended("failed")
    attributes, tables = hdf5file.read(tmp_path)
    assert attributes["status"] == "failed"
    assert tables["rounds"]["round"].tolist() == [0]
