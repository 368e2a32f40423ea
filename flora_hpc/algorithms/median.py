"""Median: the middle of all updates in each number, which few attackers cannot move far (Yin et al., ICML 2018)."""

import torch

from flora_hpc.algorithms import _rows
from flora_hpc.algorithms._algorithm import Algorithm, CombineRows, Setting

FORMULA = "adapter + median of the updates, number by number; of an even count, the mean of the middle two"
UP, DOWN = _rows.UP, _rows.DOWN
PAPER = "arXiv 1803.01498"


class Options(_rows.NeighbourOptions):
    """What comes before the median."""


def build(options: Options, setting: Setting) -> Algorithm:
    """All clients have the same weight."""
    return _rows.build(CombineRows(median), options)


def median(rows: torch.Tensor, num_clients: int) -> torch.Tensor:
    """The median (width,) of rows (num_clients, width)."""
    numbers, half = _rows.ordered(rows), len(rows) // 2
    return numbers[half] if len(rows) % 2 else (numbers[half - 1] + numbers[half]) / 2
