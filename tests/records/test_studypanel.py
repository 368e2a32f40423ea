"""What a study that is played looks like in a terminal, and in a log."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from flora_hpc.records.followstudy import FollowedStudy, StudySnapshot
from flora_hpc.records.studypanel import counts, line, lines, shortened, study_panel
from tests.records.made_study import MadeStudy

LONG = "partition.alpha: gives client 17 no example;\ngive a larger alpha, or fewer clients, so that everybody has one"


@pytest.fixture
def study(tmp_path: Path) -> MadeStudy:
    return MadeStudy(tmp_path / "study", num_seeds=20).write()


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> StudySnapshot:
    """Two finished, one failed, one stopped, twelve running, 24 waiting."""
    study = MadeStudy(tmp_path_factory.mktemp("made") / "study", num_seeds=20).write()
    for at, seconds in ((0, 300.0), (1, 302.0)):
        study.play(at, seconds=seconds)
    study.play(2, "failed", message=LONG)
    study.play(3, "stopped", num_rounds=1)
    for at in range(20, 32):
        study.begin(at, at % 3)
    return FollowedStudy(study.folder).poll()


def drawn(snapshot: StudySnapshot, width: int, height: int, note: str = "") -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height)
    console.print(study_panel(snapshot, width, height, note))
    return console.file.getvalue().splitlines()


def test_a_log_has_a_line_for_each_point(snapshot: StudySnapshot) -> None:
    assert counts(snapshot) == "40 points: 24 waiting, 12 running, 2 finished, 1 stopped, 1 failed"
    first, second, failed, stopped = lines(snapshot)
    assert first == "point 1/40 | flora-0 | accuracy 0.5000 | 5:00"
    assert second == "point 2/40 | flora-1 | accuracy 0.5000 | 5:02"
    assert failed.startswith("point 3/40 | flora-2 | failed: partition.alpha: gives client 17 no example; give a larger alpha,")
    assert stopped == "point 3/40 | flora-3 | stopped after round 1 | accuracy 0.5000 | 4.50 s"


def test_the_last_line_says_how_long_the_rest_takes(study: MadeStudy) -> None:
    """38 others of 10 s each; between two points nothing runs, so only earlier looks say how many run at a time."""
    followed = FollowedStudy(study.folder)
    study.begin(0)
    followed.poll()
    study.end(0, seconds=10.0)
    study.play(1, seconds=10.0)
    first, second = lines(followed.poll())
    assert (first, second) == (
        "point 1/40 | flora-0 | accuracy 0.5000 | 10.00 s",
        "point 2/40 | flora-1 | accuracy 0.5000 | 10.00 s | left 6:20",
    )


def test_a_point_that_measured_nothing(snapshot: StudySnapshot) -> None:
    assert line(snapshot.points[39], 7, 1000) == "point 7/1,000 | fedlc-19"


def test_what_the_panel_shows(snapshot: StudySnapshot) -> None:
    text = drawn(snapshot, 100, 40)
    whole = "\n".join(text)
    assert "points 3/40   running 12   waiting 24   failed 1   stopped 1   left " in whole
    rows = {row.split()[1]: row.split()[2:] for row in text if row.startswith(("│ fedlc", "│ flora"))}
    assert rows["fedlc-1"][:3] == ["0/2", "0.0000", "-"], "no trained round yet, so no rate"
    assert rows["fedlc-0"][:3] == ["2/2", "0.5000", "1"]
    assert rows["flora-1"][:4] == ["2", "0.5000", "0.7500", "5:02"]
    assert rows["flora-3"][:3] == ["1", "stopped", "0.5000"]
    assert "flora-2: partition.alpha: gives client 17" in whole
    assert len(text) < 40
    assert {len(row) for row in text} == {100}


@pytest.mark.parametrize("width", [20, 30, 44, 60, 80, 150, 300])
@pytest.mark.parametrize("height", [4, 8, 12, 16, 24, 60])
def test_the_panel_fits(snapshot: StudySnapshot, width: int, height: int) -> None:
    text = drawn(snapshot, width, height, "stopped; it may go on")
    assert len(text) < height
    assert {len(row) for row in text} == {min(width, 220)}
    assert any("points 3/40" in row for row in text)


def test_more_running_points_than_lines(snapshot: StudySnapshot) -> None:
    text = drawn(snapshot, 80, 24)
    at = next(number for number, row in enumerate(text) if "more" in row)
    listed = sum(row.startswith("│ fedlc") for row in text)
    assert text[at].split()[1:4] == ["and", str(12 - listed), "more"]


def test_more_failed_points_than_lines(study: MadeStudy) -> None:
    for at in range(9):
        study.play(at, "failed", message="no room")
    text = "\n".join(drawn(FollowedStudy(study.folder).poll(), 80, 50))
    assert "flora-8: no room" in text
    assert "flora-3: no room" not in text
    assert "and 4 more" in text


def test_a_study_that_has_not_begun(study: MadeStudy) -> None:
    snapshot = FollowedStudy(study.folder).poll()
    assert drawn(snapshot, 60, 20)[1].split() == ["│", "points", "0/40", "waiting", "40", "│"]
    assert (lines(snapshot), counts(snapshot)) == ([], "40 points: 40 waiting")


@pytest.mark.parametrize(("width", "short"), [(20, "method=flora,seed=12"), (9, "meth…d=12"), (2, "m…"), (1, "…")])
def test_long_names_keep_both_ends(width: int, short: str) -> None:
    assert shortened("method=flora,seed=12", width) == short
