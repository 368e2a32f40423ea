"""`study watch` follows a study of other processes."""

import io
import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from flora_hpc.cli import app
from flora_hpc.cli._study_watch import show_lines, show_live, snapshots
from flora_hpc.cli.watch import Printer
from flora_hpc.errors import UserError
from flora_hpc.records.followstudy import FollowedStudy, StudySnapshot
from tests.cli.test_watch import read_all, start
from tests.records.made_study import MadeStudy


@pytest.fixture
def study(tmp_path: Path) -> MadeStudy:
    """Three points of flora, three of fedlc."""
    return MadeStudy(tmp_path / "study")


def watch(*arguments: object) -> tuple[int, str]:
    """Exit code and what is said."""
    result = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["study", "watch", *map(str, arguments)])
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("end", "code", "last"),
    [
        ("finished", 0, "study finished, 6 points: 6 finished; in "),
        ("failed", 1, "study failed, 6 points: 5 finished, 1 failed; in "),
        ("stopped", 75, "study stopped, 6 points: 5 finished, 1 stopped; in "),
    ],
)
def test_the_exit_code_tells_how_it_ended(study: MadeStudy, end: str, code: int, last: str) -> None:
    study.write()
    for at in range(6):
        study.play(at, end if at == 2 else "finished", message="out of memory" if end == "failed" else "")
    found, output = watch(study.folder, "--view", "plain")
    assert found == code
    assert output.splitlines()[-1] == f"{last}{study.folder}"
    assert ("point 3/6 | flora-2 | failed: out of memory | accuracy 0.5000 | 4.50 s" in output) == (end == "failed")
    assert watch(study.folder, "--view", "live")[0] == code


def states(study: MadeStudy, **options: object) -> Iterator[StudySnapshot]:
    """Looks at a study that plays a point between two looks."""
    play = iter(range(6))

    def sleep(seconds: float) -> None:
        if not (study.folder / "study.h5").exists():
            study.write()
        elif (at := next(play, None)) is not None:
            study.play(at, "failed" if at == 1 else "finished", message="no room")

    return snapshots(FollowedStudy(study.folder), said.append, 1.0, 600.0, sleep, **options)


said: list[str] = []


def test_a_log_has_a_line_a_point(study: MadeStudy) -> None:
    said.clear()
    last = show_lines(said.append, states(study))
    assert said[:2] == [f"waiting for {study.folder}/study.h5, which is not there yet (Ctrl-C leaves)", "6 points: 6 waiting"]
    assert [sentence.split(" | ")[:2] for sentence in said[2:]] == [
        [f"point {at + 1}/6", point.name] for at, point in enumerate(study.points)
    ]
    assert said[3].startswith("point 2/6 | flora-1 | failed: no room")
    assert last.status == "failed"


def test_a_terminal_is_redrawn(study: MadeStudy) -> None:
    text = io.StringIO()
    last = show_live(Console(file=text, width=80, height=30, force_terminal=True, color_system=None), states(study))
    panel = text.getvalue()[text.getvalue().rindex("╭") :]
    assert "points 6/6   failed 1" in panel
    assert "failed; it may go on (Ctrl-C leaves)" in panel
    assert last.num_done == 6


@pytest.mark.parametrize("view", ["plain", "live"])
def test_a_killed_study_is_given_up_in_a_sentence(study: MadeStudy, view: str) -> None:
    study.write()
    study.play(0)
    study.begin(1, 1)
    for path in study.folder.rglob("*.*"):
        os.utime(path, (time.time() - 700, time.time() - 700))
    code, output = watch(study.folder, "--view", view)
    assert code == 1
    given_up, last = output.replace("\x1b[?25h", "").splitlines()[-2:]  # less what shows the cursor again
    assert re.fullmatch(
        r"given up after 11:4\d without a sign of life \(--give-up SECONDS waits longer, --stay for ever\)", given_up
    )
    assert last.startswith("study given up, 6 points: 4 waiting, 1 running, 1 finished; in ")


def test_stay_waits_for_a_job_that_goes_on(study: MadeStudy) -> None:
    study.write()
    study.play(0, "stopped")
    rest = iter(range(6))
    looks = snapshots(FollowedStudy(study.folder), said.append, 1.0, None, lambda seconds: study.play(next(rest)))
    assert [look.status for look in looks][-1] == "finished"


def test_ctrl_c_leaves_quietly(study: MadeStudy, python: list[str]) -> None:
    study.write()
    watching = start("study", "watch", study.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert watching.stdout.readline() == "6 points: 6 waiting\n"
    time.sleep(0.3)
    watching.send_signal(signal.SIGINT)
    _, errors = watching.communicate(timeout=60)
    assert (errors, watching.returncode) == ("", 130)


def test_a_terminal_gets_the_live_table(study: MadeStudy, python: list[str]) -> None:
    main, terminal = pty.openpty()
    live = start("study", "watch", study.folder, "--every", 0.2, stdout=terminal, stderr=terminal)
    os.close(terminal)
    study.write()
    for at in range(6):
        study.play(at)
        time.sleep(0.1)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", read_all(main))
    assert live.wait(60) == 0
    assert "╭─ flora-hpc study" in text
    assert "points 6/6" in text


def test_a_directory_without_a_study_s_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.h5").write_text("not a study")
    result = CliRunner().invoke(app, ["study", "watch", str(tmp_path)])
    assert isinstance(result.exception, UserError)
    assert str(tmp_path) in str(result.exception)


def test_a_sentence_is_said_once(tmp_path: Path) -> None:
    text, looks = io.StringIO(), iter(range(3))

    def sleep(seconds: float) -> None:
        if next(looks, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(snapshots(FollowedStudy(tmp_path), Printer(Console(file=text, width=200)), 1.0, 600.0, sleep))
    assert text.getvalue().count("waiting for") == 1
