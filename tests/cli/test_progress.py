"""A clock of our own says how late it is; what would be drawn in a terminal is read as text."""

import threading
from collections.abc import Callable

import pytest

from flora_hpc.cli._progress import Bar

Capsys = pytest.CaptureFixture[str]
ERASE, HIDE_CURSOR, SHOW_CURSOR = "\x1b[2K", "\x1b[?25l", "\x1b[?25h"


class Clock:
    """Stands still until it is set."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(clock: Clock, capsys: Capsys) -> Callable[..., list[str]]:
    """Tell a bar (seconds since the start, done, total) one after the other: the lines in the log."""

    def tell(*told: tuple[float, int, int], what: str = "features", unit: str = "images") -> list[str]:
        bar, started = Bar(what, unit, live=False, clock=clock), clock.now
        for seconds, done, total in told:
            clock.now = started + seconds
            bar(done, total)
        bar.close()
        caught = capsys.readouterr()
        assert caught.out == "", "standard output is for what a command answers"
        return caught.err.splitlines()

    return tell


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")


# --- in a log


def test_a_log_gets_a_line_at_most_every_ten_seconds(log: Callable[..., list[str]]) -> None:
    lines = log((1, 256, 2000), (9.9, 512, 2000), (10, 700, 2000), (19.9, 1024, 2000), (20, 1250, 2000), (45, 1500, 2000))
    assert lines == [
        "features: 700 of 2,000 images (35%)",
        "features: 1,250 of 2,000 images (62%)",
        "features: 1,500 of 2,000 images (75%)",
    ]


def test_ten_seconds_count_from_the_last_line(log: Callable[..., list[str]]) -> None:
    assert len(log((12, 1, 9), (21, 2, 9), (22, 3, 9))) == 2


def test_a_quick_piece_of_work_says_nothing(log: Callable[..., list[str]]) -> None:
    assert log((1, 1, 2), (2, 2, 2)) == []


def test_what_has_been_spoken_of_gets_a_last_line(log: Callable[..., list[str]]) -> None:
    assert log((11, 1, 2), (12, 2, 2)) == ["features: 1 of 2 images (50%)", "features: 2 of 2 images (100%)"]


def test_bytes_are_shown_as_sizes(log: Callable[..., list[str]]) -> None:
    assert log((10, 1_500_000, 6_000_000), what="cifar10", unit="bytes") == ["cifar10: 1.5 MB of 6.0 MB (25%)"]


def test_a_download_of_unknown_length_gets_no_more_lines_than_others(log: Callable[..., list[str]]) -> None:
    lines = log((10, 2000, 0), (11, 3000, 0), (12, 4000, 0), (20, 5000, 0), what="sun397", unit="bytes")
    assert lines == ["sun397: 2.0 kB", "sun397: 5.0 kB"]


# --- in a terminal


def test_a_bar_appears_and_goes(terminal: None, capsys: Capsys) -> None:
    bar = Bar("features", live=True)
    assert capsys.readouterr().err == ""
    bar(512, 2048)
    appeared = capsys.readouterr().err
    assert appeared.startswith(HIDE_CURSOR)
    bar(2048, 2048)
    whole = capsys.readouterr()
    last = whole.err.rpartition("features")[2]
    assert "100%" in last
    assert "2,048 of 2,048 images" in last
    assert SHOW_CURSOR in last
    assert ERASE in last.partition("images")[2], "the line is wiped after it was drawn"
    assert whole.out == ""
    bar.close()
    assert capsys.readouterr().err == ""


def test_a_bar_that_is_broken_off_goes_too(terminal: None, capsys: Capsys) -> None:
    before = set(threading.enumerate())
    bar = Bar("features", live=True)
    bar(512, 2048)
    (drawing,) = set(threading.enumerate()) - before  # anew every now and then
    bar.close()
    shown = capsys.readouterr().err
    assert "25%" in shown
    assert (shown.count(HIDE_CURSOR), shown.count(SHOW_CURSOR)) == (1, 1)
    drawing.join(5)
    assert not drawing.is_alive()


def test_a_second_archive_gets_a_bar_of_its_own(terminal: None, capsys: Capsys) -> None:
    bar = Bar("pets", "bytes", live=True)
    bar(1000, 1000)
    bar(500, 2000)
    bar.close()
    shown = capsys.readouterr().err
    assert shown.count(SHOW_CURSOR) == 2
    assert "1.0 kB of 1.0 kB" in shown
    assert shown.rpartition("pets")[2].count("500 bytes of 2.0 kB") == 1


def test_a_bar_of_unknown_length_stays_until_it_is_closed(terminal: None, capsys: Capsys) -> None:
    bar = Bar("sun397", "bytes", live=True)
    bar(0, 0)
    bar(3000, 0)
    assert SHOW_CURSOR not in capsys.readouterr().err
    bar.close()
    assert "3.0 kB" in capsys.readouterr().err


def test_a_bar_that_was_never_told_anything_draws_nothing(terminal: None, capsys: Capsys) -> None:
    Bar("features", live=True).close()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("a_terminal", [True, False])
def test_whether_it_is_a_terminal_is_found_out(
    a_terminal: bool, terminal: None, clock: Clock, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: a_terminal)
    bar = Bar("features", clock=clock)
    clock.now += 10
    bar(1, 4)
    bar.close()
    shown = capsys.readouterr().err
    assert (shown == "features: 1 of 4 images (25%)\n") != a_terminal
    assert (HIDE_CURSOR in shown) == a_terminal
