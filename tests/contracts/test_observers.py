"""What every observer promises, and what the two that print show."""

import copy
import io
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from rich.console import Console
from rich.text import Text

from flora_hpc import plugins
from flora_hpc.errors import UserError
from flora_hpc.observers import _tracker
from flora_hpc.observers._observer import Observer
from flora_hpc.observers.hdf5 import Hdf5
from flora_hpc.observers.plain import Plain
from flora_hpc.observers.quiet import Quiet
from flora_hpc.observers.terminal import Terminal
from tests.contracts.known_helpers import CONFIG, round_record, run_info

TRACKERS = _tracker.names()  # they have a contract of their own, besides
ALWAYS = [name for name in plugins.members("observers") if name not in TRACKERS]
STATUSES = ["finished", "interrupted", "failed"]
ROUNDS = [
    round_record(0, accuracy=0.25),  # nothing was trained: its loss is NaN
    round_record(1),  # its accuracy is NaN
    round_record(2, accuracy=0.75, num_rejected=1),
]


@pytest.fixture(params=ALWAYS)
def observer(request: pytest.FixtureRequest, tmp_path: Path) -> Observer:
    return plugins.member("observers", request.param).build(tmp_path / "run")


def watch(observer: Observer, status: str = "finished") -> None:
    observer.started(run_info())
    for record in ROUNDS:
        observer.round(record)
    observer.ended(status)


@pytest.mark.parametrize("status", STATUSES)
def test_follows_a_run_to_any_end_without_changing_it(observer: Observer, status: str) -> None:
    before = copy.deepcopy(ROUNDS)
    watch(observer, status)
    for record, was in zip(ROUNDS, before, strict=True):
        for table in ("row", "ranks", "clients"):
            assert getattr(record, table).tobytes() == getattr(was, table).tobytes()


def test_a_run_may_end_before_its_first_round(observer: Observer) -> None:
    observer.started(run_info())
    observer.ended("failed")


def test_a_run_may_end_before_the_observer_was_told_that_it_started(observer: Observer) -> None:
    """When one observer refuses to start, all of them are told the end."""
    observer.ended("failed")


def test_accuracy_may_never_be_measured(observer: Observer) -> None:
    observer.started(run_info())
    for number in range(3):
        observer.round(round_record(number))
    observer.ended("finished")


def test_all_clients_of_a_round_may_be_left_out(observer: Observer) -> None:
    observer.started(run_info())
    observer.round(round_record(0, accuracy=0.0))
    observer.round(round_record(1, accuracy=0.0, num_rejected=3))
    observer.ended("finished")


@pytest.mark.parametrize("name", ALWAYS)
def test_the_folder_may_have_any_name(name: str, tmp_path: Path) -> None:
    """Brackets mean something to rich."""
    watch(plugins.member("observers", name).build(tmp_path / "sweep[" / "lr]"))


@pytest.mark.parametrize("name", ALWAYS)
def test_it_says_what_it_does(name: str) -> None:
    assert (plugins.member("observers", name).__doc__ or "").strip()


# --- hdf5


@pytest.mark.parametrize("status", STATUSES)
def test_hdf5_keeps_the_rounds_and_how_the_run_ended(tmp_path: Path, status: str) -> None:
    watch(Hdf5(tmp_path / "deep" / "run"), status)
    with h5py.File(tmp_path / "deep" / "run" / "run.h5") as file:
        assert file["rounds"]["round"].tolist() == [0, 1, 2]
        np.testing.assert_array_equal(file["rounds"]["test_accuracy"], [0.25, np.nan, 0.75])
        assert file.attrs["status"] == status.encode()
    assert (tmp_path / "deep" / "run" / "config.yaml").read_text() == CONFIG


def test_hdf5_does_not_write_over_another_run(tmp_path: Path) -> None:
    watch(Hdf5(tmp_path))
    before = (tmp_path / "run.h5").read_bytes()
    with pytest.raises(UserError, match=str(tmp_path)):
        Hdf5(tmp_path).started(run_info())
    assert (tmp_path / "run.h5").read_bytes() == before


# --- plain


def plain_lines(folder: Path = Path("somewhere")) -> list[str]:
    text = io.StringIO()
    watch(Plain(folder, Console(file=text, width=100)))
    return text.getvalue().splitlines()


def test_plain_prints_one_line_a_round() -> None:
    """However wide the console is: the lines are for grep."""
    lines = plain_lines()
    first = next(i for i, line in enumerate(lines) if line.startswith("round 0/2 "))
    assert [line.split(" | ")[0] for line in lines[first : first + 3]] == ["round 0/2", "round 1/2", "round 2/2"]
    assert all(line.endswith("round 1.00 s") for line in lines[first : first + 3])


def test_plain_leaves_out_what_was_not_measured() -> None:
    before, unmeasured, _ = (line for line in plain_lines() if line.startswith("round ") and "/2 " in line)
    assert "accuracy 0.2500" in before
    assert "loss" not in before
    assert "loss 1.2500" in unmeasured
    assert "accuracy" not in unmeasured


def test_plain_says_how_many_clients_were_left_out() -> None:
    said = ["left out 1" in line for line in plain_lines() if line.startswith("round ") and "/2 " in line]
    assert said == [False, False, True]


def test_plain_closes_with_a_summary() -> None:
    text = "\n".join(plain_lines())
    assert "run finished" in text
    assert "0.2500 → 0.7500" in text
    assert "(best 0.7500 in round 2)" in text


def test_plain_names_the_folder_as_it_is() -> None:
    """At the start and at the end, also where it looks like markup."""
    assert "\n".join(plain_lines(Path("sweep[lr]"))).count("sweep[lr]") == 2


# --- terminal


def terminal(width: int, now: list[float], height: int = 50) -> tuple[Terminal, io.StringIO]:
    """A live view and what its terminal was sent; its clock shows `now[0]`."""
    text = io.StringIO()
    return Terminal(Path("somewhere"), Console(file=text, width=width, height=height, force_terminal=True), lambda: now[0]), text


def plain_text(text: io.StringIO) -> str:
    """Without colours."""
    return Text.from_ansi(text.getvalue()).plain


@pytest.mark.parametrize("width", [40, 60, 120])
def test_terminal_shows_the_last_round_within_its_width(width: int) -> None:
    view, text = terminal(width, [0.0])
    watch(view)
    shown = plain_text(text)
    panel = shown[shown.rindex("╭─ flora-hpc") : shown.rindex("╯")]
    for words in ("round 2/2", "test accuracy", "0.7500", "1.2500", "where the time goes", "1 client update"):
        assert words in panel
    assert max(Text(line).cell_len for line in shown.splitlines()) <= width


def test_terminal_is_no_higher_than_a_small_screen() -> None:
    view, text = terminal(40, [0.0], 15)
    watch(view)
    shown = plain_text(text)
    panel = shown[shown.rindex("╭─ flora-hpc") : shown.rindex("╯")]
    assert len(panel.splitlines()) < 15
    for words in ("round 2/2", "elapsed", "accuracy 0.7500", "loss 1.2500", "ranks sent", "1 client update"):
        assert words in panel


def test_terminal_ends_with_a_summary() -> None:
    view, text = terminal(100, [0.0])
    watch(view)
    assert "run finished" in plain_text(text)
    assert "0.2500 → 0.7500" in plain_text(text)


def test_terminal_tells_the_clients_done_and_the_time_while_a_round_goes_on() -> None:
    """Rounds take a second; two of six are done, and half a second of the third."""
    now = [100.0]
    view, _ = terminal(100, now)
    view.started(run_info(num_rounds=6))
    for record in ROUNDS:
        view.round(record)
    now[0] += 0.5
    view.trained(20, 30, 30)
    assert "round 2/6   clients 20/30   elapsed 3.5 s   left 3.5 s" in rendered(view)
    view.trained(20, 30, 60)
    assert "rank 0's clients 20/30" in rendered(view)
    view.trained(20, 0, 60)
    assert "rank 0's clients 20 (cohort 60)" in rendered(view)
    view.ended("interrupted")


def rendered(view: Terminal) -> str:
    """The panel as text."""
    console = Console(file=io.StringIO(), width=100)
    console.print(view.view())
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_without_colours_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    view, text = terminal(80, [0.0])
    watch(view)
    assert not re.search(r"\x1b\[[\d;]*(3\d|9\d)m", text.getvalue())


def test_a_log_has_no_escape_codes() -> None:
    text = io.StringIO()
    watch(Plain(Path("somewhere"), Console(file=text, width=80)))
    assert "\x1b" not in text.getvalue()


# --- quiet


def test_quiet_says_one_line() -> None:
    text = io.StringIO()
    watch(Quiet(Path("sweep[lr]"), Console(file=text, width=40)))
    assert text.getvalue() == "run finished, 2 rounds, test accuracy 0.2500 → 0.7500; in sweep[lr]\n"


@pytest.mark.parametrize("view", [Plain, Quiet, Terminal])
def test_a_run_that_never_moved_says_so_at_its_end(view: type[Plain] | type[Quiet] | type[Terminal]) -> None:
    text = io.StringIO()
    observer = view(Path("somewhere"), Console(file=text, width=200))
    observer.started(run_info())
    for number in range(3):
        observer.round(round_record(number, accuracy=0.25))
    observer.ended("finished")
    assert "test accuracy stayed at 0.2500, and the training loss went from 1.25 to 1.25 in 2 rounds" in text.getvalue()
