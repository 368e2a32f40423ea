"""Multi-Krum: the mean of the updates with the best scores of Krum (Blanchard et al., NeurIPS 2017)."""

import torch
from pydantic import Field

from flora_hpc.algorithms import _krum, _rows
from flora_hpc.algorithms._algorithm import Algorithm, CombineRows, Setting

FORMULA = "adapter + mean of the m updates with the least sums of squared distances to their n - f - 2 nearest ones"
UP, DOWN = _rows.UP, _rows.DOWN
PAPER = "arXiv 1703.02757"


class Options(_rows.AttackedOptions):
    """How many attackers are expected, and how many updates are chosen."""

    num_chosen: int | None = Field(None, ge=1, description="m, updates of the mean; all but f when not given")


def build(options: Options, setting: Setting) -> Algorithm:
    """The chosen clients have the same weight, since numbers of examples would be an attacker's lever."""

    def mix(squares: torch.Tensor) -> torch.Tensor:
        num_clients = len(squares) - 1
        m = min(options.num_chosen or num_clients - _rows.count(options.fraction, num_clients, num_clients - 1), num_clients)
        best = _krum.scores(squares, options.fraction).argsort(stable=True)[:m]
        return _rows.chosen(best, num_clients).sum(0, keepdim=True) / m

    too_few = _krum.fault(setting, "multi_krum", options.fraction)

    def fault(num_clients: int) -> str | None:
        if options.num_chosen is not None and options.num_chosen > num_clients:
            return (
                f"{setting.section}.num_chosen: {options.num_chosen:,} updates cannot be chosen of {num_clients:,} in a round; "
                "lower it, or raise cohort.size"
            )
        return too_few(num_clients)

    return _rows.build(CombineRows(_rows.only, mix, fault), options)
