"""A study is followed by looking at its files again and again."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from flora_hpc.errors import UserError
from flora_hpc.records import followstudy
from flora_hpc.records.followstudy import SETTLED, FollowedStudy, StudySnapshot
from flora_hpc.records.study import write_index
from tests.records.made_study import MadeStudy


@pytest.fixture
def study(tmp_path: Path) -> MadeStudy:
    return MadeStudy(tmp_path / "study").write()


def poll(followed: FollowedStudy) -> StudySnapshot:
    snapshot = followed.poll()
    assert snapshot is not None
    return snapshot


def names(snapshot: StudySnapshot) -> list[str]:
    return [point.name for point in snapshot.ended]


def test_nothing_is_there_before_the_study_is_written(tmp_path: Path) -> None:
    followed = FollowedStudy(tmp_path / "later")
    assert followed.poll() is None
    MadeStudy(tmp_path / "later").write()
    assert (poll(followed).status, poll(followed).count("waiting")) == ("waiting", 6)
    assert poll(FollowedStudy(tmp_path / "later" / "study.h5")).count("waiting") == 6


def test_points_begin_run_and_end(study: MadeStudy) -> None:
    followed = FollowedStudy(study.folder)
    poll(followed)
    study.begin(1, num_rounds=1)
    snapshot = poll(followed)
    (running,) = snapshot.running
    assert (running.point.name, running.round, running.num_rounds, running.accuracy) == ("flora-1", 1, 2, 0.25)
    assert running.seconds_per_round == 1.0
    assert (snapshot.status, names(snapshot), snapshot.seconds_left) == ("running", [], None)
    study.end(1)
    snapshot = poll(followed)
    assert (names(snapshot), snapshot.running, snapshot.num_done) == (["flora-1"], (), 1)
    assert snapshot.points[1].final_test_accuracy == 0.5
    assert names(poll(followed)) == [], "it is told once"


def test_points_are_told_in_the_order_in_which_they_ended(study: MadeStudy) -> None:
    for at in (4, 0, 2):
        study.play(at)
        time.sleep(0.01)
    snapshot = poll(FollowedStudy(study.folder))
    assert names(snapshot) == [point.name for point in snapshot.history] == ["fedlc-1", "flora-0", "flora-2"]


def test_the_time_left_needs_a_finished_point(study: MadeStudy) -> None:
    """A point takes 4.5 s. Two run at a time: of one, two rounds of a second are left; of the other, all."""
    followed = FollowedStudy(study.folder)
    study.begin(0)
    study.begin(1)
    assert poll(followed).seconds_left is None
    study.end(0)
    study.begin(2, num_rounds=1)
    snapshot = poll(followed)
    assert [each.point.name for each in snapshot.running] == ["flora-1", "flora-2"]
    assert snapshot.seconds_left == pytest.approx((4.5 + 1.0 + 3 * 4.5) / 2, abs=0.6), "less what has passed of a round"


@pytest.mark.parametrize(
    ("ends", "status"),
    [
        (["finished"] * 6, "finished"),
        (["finished", "failed", *["finished"] * 4], "failed"),
        (["finished", "failed", "stopped", *["finished"] * 3], "stopped"),
    ],
)
def test_how_a_study_ends(study: MadeStudy, ends: list[str], status: str) -> None:
    for at, end in enumerate(ends):
        study.play(at, end)
    assert poll(FollowedStudy(study.folder)).status == status


def test_a_study_with_stopped_points_has_stopped_when_no_other_begins(study: MadeStudy) -> None:
    now = [time.time()]
    followed = FollowedStudy(study.folder, lambda: now[0])
    study.play(0, "stopped")
    assert poll(followed).status == "running", "another rank may be about to begin the next point"
    now[0] += SETTLED + 1
    assert poll(followed).status == "stopped"
    study.begin(1)
    assert poll(followed).status == "running"


@pytest.mark.parametrize("removes_row", [True, False])
@pytest.mark.parametrize("end", ["stopped", "failed"])
def test_a_point_that_is_played_again(study: MadeStudy, removes_row: bool, end: str) -> None:
    """Whether or not the player removes the row of its earlier end."""
    followed = FollowedStudy(study.folder)
    study.play(0, end)
    assert names(poll(followed)) == ["flora-0"]
    time.sleep(0.01)
    if removes_row:
        study.file(0, "point.json").unlink()
    study.begin(0, num_rounds=1)
    snapshot = poll(followed)
    assert [(each.point.name, each.round) for each in snapshot.running] == [("flora-0", 1)]
    study.end(0)
    snapshot = poll(followed)
    assert (names(snapshot), snapshot.count("finished"), len(snapshot.history)) == (["flora-0"], 1, 1)


def test_a_copied_study_does_not_run(study: MadeStudy) -> None:
    """A copy may make run.h5 newer than point.json."""
    study.play(0, "failed")
    os.utime(study.file(0, "run.h5"))
    followed = FollowedStudy(study.folder)
    assert [poll(followed).count("running") for _ in range(2)] == [0, 0]


def test_an_index_that_was_copied_alone(study: MadeStudy, tmp_path: Path) -> None:
    write_index(tmp_path, [replace(point, status="finished") for point in study.points])
    assert poll(FollowedStudy(tmp_path)).status == "finished"


def test_a_study_that_is_resumed_with_more_points(study: MadeStudy) -> None:
    followed = FollowedStudy(study.folder)
    study.play(0)
    poll(followed)
    more = replace(study.points[0], name="flora-9", keys={"method.name": "flora", "seed": 9})
    write_index(study.folder, [*study.points, more])
    snapshot = poll(followed)
    assert (len(snapshot.points), snapshot.count("finished"), names(snapshot)) == (7, 1, [])


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"status": "fini'])
def test_a_half_written_row_is_read_again(study: MadeStudy, text: str) -> None:
    followed = FollowedStudy(study.folder)
    study.begin(0)
    study.file(0, "point.json").write_text(text)
    snapshot = poll(followed)
    assert (names(snapshot), snapshot.count("running")) == ([], 1)
    study.end(0)
    assert poll(followed).count("finished") == 1


def test_a_damaged_row_is_a_failed_point_after_a_while(study: MadeStudy) -> None:
    followed = FollowedStudy(study.folder)
    study.begin(0)
    study.file(0, "point.json").write_text("{")
    looks = [poll(followed) for _ in range(followstudy.PATIENCE)]
    assert [look.count("failed") for look in looks] == [0] * 9 + [1]
    assert "--resume plays this point again" in looks[-1].points[0].message


def test_files_that_are_half_written_or_vanish(study: MadeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flora_hpc.records.hdf5file.PAUSES", ())
    followed = FollowedStudy(study.folder)
    study.play(0)
    study.begin(1)
    poll(followed)
    study.begin(2)
    whole = study.file(2, "run.h5").read_bytes()
    study.file(2, "run.h5").write_bytes(whole[:100])
    snapshot = poll(followed)
    assert [(each.point.name, each.run is None) for each in snapshot.running] == [("flora-1", False), ("flora-2", True)]
    assert (snapshot.running[1].round, snapshot.running[1].num_rounds) == (0, 0)
    study.file(1, "run.h5").unlink()
    (study.folder / "study.h5").rename(study.folder / "away.h5")
    snapshot = poll(followed)
    assert (snapshot.count("waiting"), snapshot.count("running"), snapshot.count("finished")) == (4, 1, 1)


def test_a_directory_that_holds_no_study(tmp_path: Path) -> None:
    (tmp_path / "study.h5").write_text("no study")
    with pytest.raises(UserError, match=r"study.h5: cannot be read"):
        FollowedStudy(tmp_path).poll()


def test_a_killed_study_is_doubted_and_given_up(study: MadeStudy) -> None:
    now = [time.time()]
    followed = FollowedStudy(study.folder, lambda: now[0])
    study.play(0)
    study.begin(1, num_rounds=1)
    assert (poll(followed).doubt, poll(followed).given_up(600)) == ("", False)
    now[0] += 120
    assert poll(followed).doubt == "last written 2:00 ago; its job may have been killed"
    now[0] += 500
    assert poll(followed).given_up(600)
    study.begin(2)
    assert not poll(followed).given_up(600), "another point has begun"
    now[0] += 601
    assert not poll(followed).given_up(600), "nobody knows how long the first round of that point takes"
    now[0] += 3000
    assert poll(followed).given_up(600)


def test_a_study_that_waits_for_its_job_is_not_given_up(study: MadeStudy) -> None:
    followed = FollowedStudy(study.folder, lambda: time.time() + 1e6)
    assert not poll(followed).given_up(600)


def test_a_look_reads_only_what_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand points, of which four run: after the first look no row is read again."""
    study = MadeStudy(tmp_path / "study", num_seeds=500).write()
    for at in range(20):
        study.play(at)
    for at in range(20, 24):
        study.begin(at)
    read: list[str] = []
    newest = followstudy.newest
    monkeypatch.setattr(followstudy, "newest", lambda folder, point: [read.append(point.name), newest(folder, point)][1])
    followed = FollowedStudy(study.folder)
    assert poll(followed).count("finished") == 20
    assert len(read) == 20
    study.end(20)
    assert names(poll(followed)) == ["flora-20"]
    assert len(read) == 21
