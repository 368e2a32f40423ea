"""`watch` follows a run of another process."""

import io
import json
import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from flora_hpc.cli import app
from flora_hpc.cli.watch import Printer, show_lines, show_live, snapshots
from flora_hpc.errors import UserError
from flora_hpc.records.follow import Snapshot
from flora_hpc.records.hdf5file import Writer
from tests import forks
from tests.conftest import ROOT
from tests.contracts.known_helpers import round_record, run_info

pytestmark = pytest.mark.usefixtures("python")

ROUNDS = ["-s", "rounds=4"]


def start(*arguments: object, **options: object) -> "subprocess.Popen[str]":
    command = [*forks.PYTHON, "-m", "flora_hpc", *map(str, arguments)]
    environment = os.environ | {"COLUMNS": "80", "LINES": "50", "TERM": "xterm"}
    return subprocess.Popen(command, text=True, cwd=ROOT, env=environment, **options)  # type: ignore[call-overload]


def lines_of_rounds(text: str) -> list[str]:
    return [line.split(" | ")[0] for line in text.splitlines() if re.match(r"round \d+/", line)]


def test_a_live_run_is_followed_to_its_end_without_and_with_a_terminal(tmp_path: Path) -> None:
    """Both start before the run does."""
    out = tmp_path / "run"
    main, terminal = pty.openpty()
    plain = start("watch", out, "--every", 0.2, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    live = start("watch", out, "--every", 0.2, stdout=terminal, stderr=terminal)
    os.close(terminal)
    run = start("run", ROOT / "configs" / "quickstart.yaml", "--out", out, *ROUNDS, "--quiet", stdout=subprocess.PIPE)
    drawn = read_all(main)
    said = plain.communicate(timeout=240)[0]
    assert (plain.returncode, live.wait(60), run.wait(60)) == (0, 0, 0), said
    assert said.startswith(f"waiting for {out}/run.h5, which is not there yet")
    assert said.count("waiting") == 1
    assert lines_of_rounds(said)[-1] == "round 4/4"
    assert lines_of_rounds(said) == sorted(set(lines_of_rounds(said))), "each once, in order"
    assert "run finished" in said
    assert "\x1b" not in said
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn)
    assert "╭─ flora-hpc" in text
    assert "round 4/4" in text
    assert "run finished" in text
    last = run.communicate()[0].splitlines()
    assert len(last) == 1
    assert last[0].startswith("run finished, 4 rounds, test accuracy ")


def read_all(descriptor: int) -> str:
    """All that a terminal is sent."""
    parts = []
    while True:
        try:
            data = os.read(descriptor, 65536)
        except OSError:  # Linux: the other side is closed
            break
        if not data:
            break
        parts.append(data)
    os.close(descriptor)
    return b"".join(parts).decode()


@pytest.mark.parametrize("view", ["plain", "live"])
def test_ctrl_c_leaves_quietly(tmp_path: Path, view: str) -> None:
    writer = Writer(tmp_path / "run.h5", run_info())
    writer.add(round_record(0, accuracy=0.25))
    watching = start("watch", tmp_path, "--view", view, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    seen = ""
    while "0/2" not in seen:
        seen += watching.stdout.readline()
    time.sleep(0.3)
    watching.send_signal(signal.SIGINT)
    _, told = watching.communicate(timeout=60)
    assert (told, watching.returncode) == ("", 130)
    writer.close("finished")


# --- in this process


def watch(*arguments: object) -> tuple[int, str]:
    """Exit code and what is said."""
    result = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["watch", *map(str, arguments)])
    return result.exit_code, result.output


@pytest.mark.parametrize(("status", "code"), [("finished", 0), ("stopped", 75), ("failed", 1), ("interrupted", 1)])
def test_the_exit_code_is_the_runs(tmp_path: Path, status: str, code: int) -> None:
    writer = Writer(tmp_path / "run.h5", run_info())
    writer.add(round_record(0, accuracy=0.25))
    writer.close(status)
    found, said = watch(tmp_path)
    assert f"run {status}" in said
    assert found == code


@pytest.mark.parametrize("view", ["plain", "live"])
def test_a_killed_run_is_given_up_in_a_sentence(tmp_path: Path, view: str) -> None:
    writer = Writer(tmp_path / "run.h5", run_info())
    for number in range(2):
        writer.add(round_record(number))
    os.utime(tmp_path / "run.h5", (time.time() - 700, time.time() - 700))
    code, said = watch(tmp_path, "--view", view)
    assert code == 1
    assert re.fullmatch(r"given up after 11:4\d without a sign of life \(--give-up .*\)", said.splitlines()[-1])
    assert "run running" not in said
    writer.close("finished")


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.h5").write_text("not a run")
    result = CliRunner().invoke(app, ["watch", str(tmp_path)])
    assert isinstance(result.exception, UserError)


def snapshot(last: int, status: str = "running", resumed: Sequence[int] = (), silent: float = 0.0) -> Snapshot:
    """A run that has played rounds 0 to `last` of 2."""
    info = run_info()
    rounds = np.concatenate([round_record(number, accuracy=0.5).row for number in range(last + 1)])
    return Snapshot(vars(info) | {"status": status, "resumed_after": json.dumps(resumed)}, rounds, info.topology, silent)


class Scripted:
    """A run with scripted snapshots; one poll too many raises StopIteration, which a generator turns into a RuntimeError."""

    path = Path("run.h5")

    def __init__(self, *script: Snapshot | None) -> None:
        self._script = iter(script)

    def poll(self) -> Snapshot | None:
        return next(self._script)


def statuses(*scripted: Snapshot | None, give_up: float | None = 600.0) -> list[str]:
    """The statuses of all snapshots until the watching ends."""
    return [seen.status for seen in snapshots(Scripted(*scripted), lambda sentence: None, 1.0, give_up, lambda seconds: None)]


def test_watching_ends_with_the_run_and_waits_for_it() -> None:
    assert statuses(None, None, snapshot(0), snapshot(1, "stopped"), snapshot(2)) == ["running", "stopped"]
    assert statuses(snapshot(1), snapshot(2, "finished"), snapshot(2)) == ["running", "finished"]


def test_a_silent_run_is_left_after_a_while() -> None:
    assert statuses(snapshot(1, silent=599), snapshot(1, silent=600), snapshot(1)) == ["running"] * 2


def test_stay_waits_for_a_job_that_goes_on() -> None:
    states = (snapshot(1, "failed"), snapshot(1, silent=1e6), snapshot(2, resumed=[1]), snapshot(2, "finished"), snapshot(2))
    assert statuses(*states, give_up=None) == ["failed", "running", "running", "finished"]


def printed(*states: Snapshot) -> list[str]:
    """The lines about rounds and resumes, without the description of the run."""
    text = io.StringIO()
    show_lines(Printer(Console(file=text, width=200)), iter(states))
    return [line.split(" | ")[0] for line in text.getvalue().splitlines() if re.match("round|goes on after|starts|last", line)]


def test_rounds_are_told_once_from_the_last_one_on() -> None:
    assert printed(snapshot(1), snapshot(1), snapshot(2), snapshot(2, "finished")) == ["round 1/2", "round 2/2"]


def test_rounds_that_are_played_again_are_told_again() -> None:
    states = snapshot(2), snapshot(1, resumed=[1]), snapshot(2, resumed=[1])
    assert printed(*states) == [
        "round 2/2",
        "goes on after round 1",
        "round 2/2",
    ]


def test_a_run_that_goes_on_twice_after_one_round_says_so_twice() -> None:
    """As a job does that is killed before its first checkpoint."""
    again = ["goes on after round 1", "round 2/2"]
    states = (snapshot(2), snapshot(2, resumed=[1]), snapshot(2, resumed=[1, 1]))
    assert printed(*states) == ["round 2/2", *again, *again]


def test_what_happened_between_two_polls_counts() -> None:
    assert printed(snapshot(2), snapshot(2, resumed=[0, 1])) == ["round 2/2", "goes on after round 1", "round 1/2", "round 2/2"]


@pytest.mark.parametrize(("before", "after"), [([], [-1]), ([0], [])])
def test_a_run_that_starts_over_is_told_from_its_beginning(before: list[int], after: list[int]) -> None:
    """Without a checkpoint; or because another one was put in its place."""
    states = (snapshot(1, resumed=before), snapshot(1, resumed=after))
    assert printed(*states) == ["round 1/2", "starts over", "round 0/2", "round 1/2"]


def test_a_doubt_is_told_once_each_time() -> None:
    doubt = "last written 2:00 ago; its job may have been killed"
    states = (snapshot(1, silent=120), snapshot(1, silent=120.1), snapshot(2), snapshot(2, silent=120))
    assert printed(*states) == ["round 1/2", doubt, "round 2/2", doubt]


def drawn(*states: Snapshot) -> str:
    """The last panel that a terminal of 80 columns is shown."""
    text = io.StringIO()
    show_live(Console(file=text, width=80, force_terminal=True, color_system=None), iter(states))
    return text.getvalue()[text.getvalue().rindex("╭") :]


def test_the_panel_is_no_higher_than_the_terminal() -> None:
    text = io.StringIO()
    console = Console(file=text, width=40, height=15, force_terminal=True, color_system=None)
    show_live(console, iter((snapshot(1), snapshot(2, silent=120))))
    panel = text.getvalue()[text.getvalue().rindex("╭") :]
    assert len(panel[: panel.index("╯")].splitlines()) == 14
    assert "have been killed" in panel


@pytest.mark.parametrize("silent", [0.0, 1e9])
def test_the_clock_of_a_run_that_has_ended_stands_still(silent: float) -> None:
    """Two rounds and the state before them took a second each."""
    assert "elapsed 3.0 s" in drawn(snapshot(2), snapshot(2, "finished", silent=silent))


def test_the_clock_of_a_run_that_goes_on_counts_from_there() -> None:
    assert "elapsed 1.5 s" in drawn(snapshot(1), snapshot(2, resumed=[0, 1], silent=0.5))


@pytest.mark.parametrize(
    ("seen", "note"),
    [
        (snapshot(1, "stopped"), "stopped; it may go on (Ctrl-C leaves)"),
        (snapshot(1, silent=120), "last written 2:00 ago; its job may have been killed"),
    ],
)
def test_the_panel_says_when_nothing_may_come(seen: Snapshot, note: str) -> None:
    assert note in drawn(snapshot(1), seen)
    assert note not in drawn(seen, snapshot(1))
