"""FedDyLoRA: FLoRA whose clients have adapters of different rank, by share of the data or by how unusual their labels are.

rank = max(1, round(min_rank + (max_rank - min_rank) * x)), as in the FLoRA paper's code. x is the client's share of all examples,
or its share of the sum of all divergences; with `normalized`, x is stretched over 0..1. A client of rank r receives and trains the
first r rows of A and columns of B. The server pads its update with zeros before it averages, so numbers that few clients hold are
drawn towards zero.
"""

from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator

from flora_hpc.data.holdings import Holdings
from flora_hpc.data.images import Ints
from flora_hpc.errors import UserError
from flora_hpc.methods import _lora
from flora_hpc.methods._method import Method, Portions, Setting

MANY = 100_000  # clients; reading the labels of more clients before the start takes too long


class Options(_lora.LoraOptions):
    """Bounds of the ranks, and how a client's rank is chosen between them."""

    min_rank: int = Field(1, ge=1, description="rank where x is 0")
    max_rank: int = Field(8, ge=1, description="rank where x is 1")
    by: Literal["share", "divergence"] = Field(
        "share", description="x from the number of examples, or from the divergence of a client's labels from all labels"
    )
    normalized: bool = Field(True, description="stretch x so that the smallest client has 0 and the largest 1")

    @model_validator(mode="after")
    def _in_order(self) -> "Options":
        if self.min_rank > self.max_rank:
            raise ValueError(f"method.max_rank: {self.max_rank} is smaller than method.min_rank, {self.min_rank}; raise it")
        return self


def build(options: Options, setting: Setting) -> Method:
    ranks = choose_ranks(options, setting.holdings, setting.labels, len(setting.wordings))
    method = _lora.build(options, setting, options.max_rank, "method.max_rank")

    def mask(clients: Ints) -> torch.Tensor:
        return _lora.mask_of_ranks(method.shapes, ranks[clients])

    def sizes(clients: Ints) -> Ints:
        return ranks[clients] * (method.num_params // options.max_rank)

    how = f"{method.how}; clients have ranks {ranks.min()} to {ranks.max()}"
    return replace(method, portions=Portions(mask, sizes), how=how)


def choose_ranks(options: Options, holdings: Holdings, labels: Ints, num_classes: int) -> Ints:
    """The rank of every registered client, (num_clients,) int64. Raises UserError for too many clients to read their labels."""
    if holdings.num_clients > MANY:
        raise UserError(
            f"method.name: feddylora looks at the data of every registered client first; {holdings.num_clients:,} are more than "
            f"{MANY:,}; lower partition.num_clients, or take flora"
        )
    clients = np.arange(holdings.num_clients)
    weights = holdings.sizes(clients).astype(np.float64) if options.by == "share" else divergences(holdings, labels, num_classes)
    x = weights / (weights.sum() or 1.0)
    if options.normalized:
        spread = x.max() - x.min()
        x = (x - x.min()) / spread if spread else np.full(len(x), 0.5)
    ranks: Ints = np.maximum(1, np.round(options.min_rank + (options.max_rank - options.min_rank) * x)).astype(np.int64)
    return ranks


def divergences(holdings: Holdings, labels: Ints, num_classes: int) -> npt.NDArray[np.float64]:
    """Kullback-Leibler divergence of each client's shares of the classes from those of all clients together, (num_clients,)."""
    counts = np.stack([np.bincount(labels[holdings.examples(i)], minlength=num_classes) for i in range(holdings.num_clients)])
    shares = counts / counts.sum(1, keepdims=True)
    total_shares = counts.sum(0) / counts.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(counts > 0, shares * np.log(shares / total_shares), 0.0)
    result: npt.NDArray[np.float64] = terms.sum(1)
    return result
