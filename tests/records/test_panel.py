"""The panel of a live view fits its terminal."""

import io

import numpy as np
import pytest
from rich.console import Console

from flora_hpc.records.panel import WIDEST, PanelData, Progress, panel
from tests.contracts.known_helpers import round_record

NOTE = "last written 2:00 ago; its job may have been killed"
SIZES = [(20, 6), (40, 10), (40, 15), (60, 20), (80, 24), (80, 50), (120, 30), (200, 50), (300, 80)]


def seen(num_rounds: int, note: str = "", num_rejected: int = 0) -> PanelData:
    """Rounds 0 to `num_rounds - 1` of twenty or more, in the middle of the next one."""
    records = [round_record(i, accuracy=0.5 + i / (2 * num_rounds), num_rejected=num_rejected) for i in range(num_rounds)]
    rounds = np.concatenate([record.row for record in records]) if records else round_record(0).row[:0]
    return PanelData(rounds, max(20, num_rounds + 1), -1, 0.5, Progress(7, 10, 10), note)


def drawn(what: PanelData, width: int, height: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, record=True, force_terminal=True)
    console.print(panel(what, *console.size))
    return console.export_text().splitlines()


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("num_rounds", [0, 1, 2, 13, 300])
@pytest.mark.parametrize(("note", "num_rejected"), [("", 0), (NOTE, 1)])
def test_no_line_is_longer_and_no_view_higher_than_the_terminal(
    width: int, height: int, num_rounds: int, note: str, num_rejected: int
) -> None:
    lines = drawn(seen(num_rounds, note, num_rejected), width, height)
    assert {len(line) for line in lines} == {min(width, WIDEST)}
    assert len(lines) < height, "the last line is the cursor's"
    assert lines[-1].endswith("╯")
    assert any("clients 7/10" in line for line in lines)


def test_a_small_terminal_shows_all_numbers_and_a_small_plot() -> None:
    lines = drawn(seen(13), 40, 15)
    text = "\n".join(lines)
    for words in ("round 12/20", "elapsed 13.5 s", "left 7.5 s", "test accuracy", "accuracy 0.9615", "loss 1.2500", "up 3.6 kB"):
        assert words in text
    for words in ("down 3.6 kB", "ranks sent 52.0 kB", "time  train 38%  eval 25%  wait 12%"):
        assert words in text
    assert len([line for line in lines if any(0x2800 < ord(character) < 0x2900 for character in line)]) == 3
    assert len(lines) == 14, "all that there is"


def test_what_is_wrong_goes_before_a_plot() -> None:
    text = " ".join(" ".join(drawn(seen(13, NOTE, num_rejected=1), 40, 15)).replace("│", " ").split())
    assert NOTE in text
    assert "13 client updates were not finite or too large and were left out" in text
    assert "ranks sent 52.0 kB" in text


def test_a_large_terminal_is_used() -> None:
    lines = drawn(seen(40), 200, 50)
    text = "\n".join(lines)
    assert len(lines) >= 45
    assert len(lines[0]) == 200
    headings = next(line for line in lines if "test accuracy" in line)
    assert "training loss" in headings, "side by side"
    table = [line.strip("│ ").split() for line in lines]
    columns = ["round", "accuracy", "loss", "time", "train", "wait", "comm", "clients", "up", "down", "ranks", "sent"]
    assert columns in table
    assert [row[0] for row in table[table.index(columns) + 1 :][:10]] == [str(number) for number in range(30, 40)]
    assert "where the time goes" in text


def test_the_bar_is_exact_to_half_a_cell() -> None:
    """12 of 20 rounds and seven tenths of the next one, over 36 cells: 22.86."""
    (line,) = [line for line in drawn(seen(13), 40, 15) if "━" in line]
    assert line == "│ " + "━" * 23 + "─" * 13 + " │"
