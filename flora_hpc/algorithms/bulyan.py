"""Bulyan: Krum chooses most updates one after another, and a mean near their median follows (El Mhamdi et al., ICML 2018)."""

import numpy as np
import torch
from pydantic import Field

from flora_hpc.algorithms import _rows
from flora_hpc.algorithms._algorithm import Algorithm, CombineRows, Setting
from flora_hpc.algorithms.median import median

FORMULA = (
    "n - 2 f times: Krum chooses one of the remaining updates; adapter + mean of the n - 4 f chosen numbers nearest to their median"
)
UP, DOWN = _rows.UP, _rows.DOWN
PAPER = "arXiv 1802.07927"


class Options(_rows.AttackedOptions):
    """How many attackers are expected: less than a quarter."""

    fraction: float = Field(
        0.1, ge=0, lt=0.25, description="share of a round's clients that may be attackers; rounded down to f clients"
    )


def build(options: Options, setting: Setting) -> Algorithm:
    """Of equal scores or distances, the client with the lowest number is chosen."""

    def attackers(num_clients: int) -> int:
        return _rows.count(options.fraction, num_clients, (num_clients - 3) // 4)

    def mix(squares: torch.Tensor) -> torch.Tensor:
        num_clients = len(squares) - 1
        return _rows.chosen(choose(squares, attackers(num_clients)), num_clients)

    def columns(rows: torch.Tensor, num_clients: int) -> torch.Tensor:
        return near_median(rows, num_clients - 4 * attackers(num_clients))

    fault = _rows.needs(setting, "bulyan", options.fraction, lambda f: 4 * f + 3, "4 f + 3")
    return _rows.build(CombineRows(columns, mix, fault), options)


def choose(squares: torch.Tensor, f: int) -> torch.Tensor:
    """The n - 2 f clients that Krum chooses one after another, each from those that remain; in the order of their numbers."""
    num_clients = len(squares) - 1
    order = _rows.nearest_first(squares)
    nearest = squares[:-1, :-1].gather(1, order)
    remain = torch.ones(num_clients, dtype=torch.bool)
    for num_left in range(num_clients, 2 * f, -1):
        present = remain[order]
        counts = present & (present.cumsum(1) <= max(1, num_left - f - 2))
        scores = torch.where(counts, nearest, 0.0).sum(1).masked_fill(~remain, torch.inf)
        remain[int(np.argmin(scores.numpy()))] = False
    return torch.nonzero(~remain)[:, 0]


def near_median(rows: torch.Tensor, count: int) -> torch.Tensor:
    """In each column of rows (n, width), the mean (width,) of the `count` numbers that are nearest to the median."""
    distances = np.abs(rows.numpy() - median(rows, len(rows)).numpy())
    nearest = np.argsort(distances, axis=0, kind="stable")[:count]
    return torch.from_numpy(np.take_along_axis(rows.numpy(), nearest, axis=0).mean(0))
