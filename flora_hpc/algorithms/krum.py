"""Krum: the one update that lies nearest to most others (Blanchard et al., NeurIPS 2017)."""

import torch

from flora_hpc.algorithms import _krum, _rows
from flora_hpc.algorithms._algorithm import Algorithm, CombineRows, Setting

FORMULA = "adapter + the update with the least sum of squared distances to its n - f - 2 nearest ones"
UP, DOWN = _rows.UP, _rows.DOWN
PAPER = "arXiv 1703.02757"


class Options(_rows.AttackedOptions):
    """How many attackers are expected."""


def build(options: Options, setting: Setting) -> Algorithm:
    """Of equal scores, the client with the lowest number is chosen."""

    def mix(squares: torch.Tensor) -> torch.Tensor:
        best = _krum.scores(squares, options.fraction).argsort(stable=True)[:1]
        return _rows.chosen(best, len(squares) - 1)

    return _rows.build(CombineRows(_rows.only, mix, _krum.fault(setting, "krum", options.fraction)), options)
