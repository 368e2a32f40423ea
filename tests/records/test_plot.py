"""Lines of braille dots."""

import numpy as np
import pytest
from rich.text import Text

from flora_hpc.records.plot import axis, line, percent_limits, plot
from flora_hpc.records.schema import ROUNDS
from tests.contracts.known_helpers import rows


def dots(cells: list[list[str]]) -> list[str]:
    """Braille as a picture: '#' for a dot, '.' for none."""
    picture = np.full((4 * len(cells), 2 * len(cells[0])), ".")
    for (row, column), cell in np.ndenumerate(np.array(cells)):
        code = 0 if cell == " " else ord(cell) - 0x2800
        for bit, (down, right) in enumerate([(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (3, 0), (3, 1)]):
            if code & 1 << bit:
                picture[4 * row + down, 2 * column + right] = "#"
    return ["".join(each) for each in picture.tolist()]


def test_a_line_from_corner_to_corner() -> None:
    assert dots(line([0.0, 1.0], 2, 1, 0.0, 1.0)) == ["...#", "..#.", ".#..", "#..."]


def test_a_steep_line_has_no_gaps() -> None:
    assert dots(line([1.0, 0.0], 1, 2, 0.0, 1.0)) == ["#.", *[".#"] * 7]


def test_a_line_of_equal_values_is_straight_and_in_the_middle() -> None:
    assert dots(line([3.0] * 3, 2, 1, 3.0, 3.0)) == ["....", "....", "####", "...."]


def test_many_values_become_means_of_equal_stretches() -> None:
    assert dots(line([0.0, 0.0, 0.0, 2.0, 2.0, 2.0], 1, 1, 0.0, 2.0)) == [".#", ".#", ".#", "#."]
    assert line([0.0, 2.0] * 500, 2, 2, 0.0, 2.0) == line([1.0, 1.0], 2, 2, 0.0, 2.0)


@pytest.mark.parametrize(("num_values", "cells"), [(2, 11), (3, 21), (4, 23), (500, 23)])
def test_a_plot_is_no_wider_than_it_may_be_and_a_few_values_are_narrow(num_values: int, cells: int) -> None:
    lines = plot([0.0, 1.0] * (num_values // 2) + [0.5] * (num_values % 2), 30, 3, (0.0, 1.0), "{:.0%}".format, "green")
    assert [each.cell_len for each in lines] == [7 + cells] * 3
    assert [each.plain[:7] for each in lines] == ["  100% ", "       ", "    0% "]


def test_the_axis_names_the_first_and_the_last_round() -> None:
    played = rows(ROUNDS, *({"round": number} for number in (0, 5, 120)))
    assert axis(played, [Text(" " * 20)]).plain == " round 0         120"
    assert axis(played, [Text(" " * 9)]).plain == " round 120", "no place for both"


@pytest.mark.parametrize(
    ("values", "limits"),
    [
        ([0.8997, 0.983], (0.89, 0.99)),
        ([0.5, 0.5], (0.49, 0.51)),
        ([1.0], (0.99, 1.0)),
        ([0.0], (0.0, 0.01)),
        ([0.29, 0.58], (0.29, 0.58)),
    ],
)
def test_limits_are_whole_percents(values: list[float], limits: tuple[float, float]) -> None:
    assert percent_limits(values) == pytest.approx(limits)
