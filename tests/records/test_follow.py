import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from flora_hpc import yamltext
from flora_hpc.errors import UserError
from flora_hpc.records.follow import FollowedRun, Snapshot
from flora_hpc.records.hdf5file import Writer
from flora_hpc.records.known import Earlier
from flora_hpc.records.schema import CLIENTS, RANKS, TOPOLOGY
from tests.contracts.known_helpers import CONFIG, round_record, run_info


def test_nothing_is_there_before_the_run_begins(tmp_path: Path) -> None:
    followed = FollowedRun(tmp_path / "later")
    assert followed.poll() is None
    (tmp_path / "later").mkdir()
    assert followed.poll() is None
    Writer(tmp_path / "later" / "run.h5", run_info())
    look = followed.poll()
    assert look is not None
    assert (look.status, look.num_rounds, len(look.rounds)) == ("running", 2, 0)


def test_every_round_is_seen_and_the_end(tmp_path: Path) -> None:
    writer, followed, seen = Writer(tmp_path / "run.h5", run_info()), FollowedRun(tmp_path / "run.h5"), []
    for number in range(3):
        writer.add(round_record(number))
        seen.append(followed.poll().rounds["round"].tolist())
    assert seen == [[0], [0, 1], [0, 1, 2]]
    writer.close("stopped")
    assert followed.poll().status == "stopped"


def test_a_round_that_bears_the_time_of_the_one_before_is_seen(tmp_path: Path) -> None:
    """The clock of a file system has ticks, which may be longer than a round."""
    path = tmp_path / "run.h5"
    writer, followed = Writer(path, run_info()), FollowedRun(path)
    for number in range(2):
        writer.add(round_record(number))
    followed.poll()
    before = path.stat()
    writer.add(round_record(2))
    os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size, "or else this tests nothing"
    assert followed.poll().rounds["round"].tolist() == [0, 1, 2]


def test_the_configuration_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed, parse = [], yamltext.parse
    monkeypatch.setattr(yamltext, "parse", lambda text: [parsed.append(text), parse(text)][1])
    Writer(tmp_path / "run.h5", run_info(config=CONFIG + "# of this test\n"))
    followed = FollowedRun(tmp_path)
    assert [followed.poll().num_rounds for _ in range(3)] == [2, 2, 2]
    assert len(parsed) == 1


def test_a_run_that_goes_on_puts_a_new_file_in_its_place(tmp_path: Path) -> None:
    writer, followed = Writer(tmp_path / "run.h5", run_info()), FollowedRun(tmp_path)
    for number in range(3):
        writer.add(round_record(number))
    assert followed.poll().resumed == ()
    rows = np.concatenate([round_record(number).row for number in range(2)])
    Writer(tmp_path / "run.h5", run_info(earlier=Earlier(rows, np.zeros(0, RANKS), np.zeros(0, CLIENTS), [1])))
    look = followed.poll()
    assert (look.rounds["round"].tolist(), look.resumed) == ([0, 1], (1,))


def test_a_silent_run_is_doubted(tmp_path: Path) -> None:
    """After a minute, or five of its rounds, which take a second here. An ended one is not."""
    writer, now = Writer(tmp_path / "run.h5", run_info()), [0.0]
    writer.add(round_record(0))
    os.utime(tmp_path / "run.h5", (1000, 1000))
    now[0] = 1059.0
    followed = FollowedRun(tmp_path, lambda: now[0])
    assert followed.poll().doubt == ""
    now[0] = 1200.0
    assert followed.poll().doubt == "last written 3:20 ago; its job may have been killed"
    writer.add(round_record(1))
    assert followed.poll().doubt == "", "it has grown"
    writer.close("finished")
    followed.poll()
    now[0] += 1000
    assert followed.poll().doubt == ""


@pytest.mark.parametrize(
    ("round_seconds", "patience"),
    [
        ([9.0], 3600),  # no trained round: nobody knows how long one takes
        ([9.0, 30.0], 600),
        ([9.0, 30.0, 400.0, 30.0], 2000),  # one in which clients were tested
    ],
)
def test_a_silent_run_is_given_up_after_several_rounds(round_seconds: list[float], patience: float) -> None:
    rounds = np.concatenate([round_record(number).row for number in range(len(round_seconds))])
    rounds["round_seconds"] = round_seconds

    def given_up(silent: float, status: str = "running") -> bool:
        return Snapshot({"status": status}, rounds, np.zeros(0, TOPOLOGY), silent).given_up(600)

    assert (given_up(patience - 1), given_up(patience)) == (False, True)
    assert not given_up(1e6, "finished")


def test_a_file_that_cannot_be_read_for_a_moment_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that is being made, a file system that loses its server; but not for ever."""
    monkeypatch.setattr("flora_hpc.records.hdf5file.PAUSES", ())
    path = tmp_path / "run.h5"
    Writer(path, run_info()).close("stopped")
    shutil.copy(path, tmp_path / "kept")
    followed = FollowedRun(path)
    followed.poll()
    path.write_text("half a copy")
    assert followed.poll().status == "stopped", "what was known"
    shutil.copy(tmp_path / "kept", path)
    assert followed.poll().status == "stopped"
    path.write_text("not a run")
    with pytest.raises(UserError, match="is not an HDF5 file"):
        [followed.poll() for _ in range(20)]


def test_a_file_that_is_not_a_runs_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "run.h5").write_text("not a run")
    with pytest.raises(UserError, match="is not an HDF5 file"):
        FollowedRun(tmp_path).poll()
