"""Trimmed mean: in each number, the lowest and the highest updates do not count (Yin et al., ICML 2018)."""

import torch

from flora_hpc.algorithms import _rows
from flora_hpc.algorithms._algorithm import Algorithm, CombineRows, Setting

FORMULA = "adapter + mean of the updates without the f lowest and the f highest, number by number; f = fraction x clients"
UP, DOWN = _rows.UP, _rows.DOWN
PAPER = "arXiv 1803.01498"


class Options(_rows.AttackedOptions):
    """What is trimmed; nothing is with `fraction: 0`, the mean of all updates with equal weights."""


def build(options: Options, setting: Setting) -> Algorithm:
    """All clients have the same weight."""

    def columns(rows: torch.Tensor, num_clients: int) -> torch.Tensor:
        f = _rows.count(options.fraction, len(rows), (len(rows) - 1) // 2)
        return _rows.ordered(rows)[f : len(rows) - f].mean(0)

    return _rows.build(CombineRows(columns), options)
