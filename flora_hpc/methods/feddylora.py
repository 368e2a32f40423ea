"""FedDyLoRA: FLoRA whose clients have adapters of different rank, by share of the data, unusual labels, or a column.

rank = max(1, round(min_rank + (max_rank - min_rank) * x)), as in the FLoRA paper's code. x is the client's share of all examples,
or its share of the sum of all divergences; with `normalized`, x is stretched over 0..1. With `by: column`, a column says each
client's rank, or a class such as its device, of which `ranks` says the rank. A client of rank r receives and trains the
first r rows of A and columns of B. The server pads its update with zeros before it averages, so numbers that few clients hold are
drawn towards zero.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator

from flora_hpc.data.holdings import Holdings
from flora_hpc.data.images import Ints
from flora_hpc.data.texts import shown
from flora_hpc.errors import UserError
from flora_hpc.methods import _lora
from flora_hpc.methods._method import Method, Portions, Setting

NUMBER = re.compile(r"[0-9]{1,9}")
MANY = 100_000  # clients; reading the labels of more clients before the start takes too long


class Options(_lora.LoraOptions):
    """Bounds of the ranks, and how a client's rank is chosen between them."""

    min_rank: int = Field(1, ge=1, description="rank where x is 0")
    max_rank: int = Field(8, ge=1, description="rank where x is 1")
    by: Literal["share", "divergence", "column"] = Field(
        "share",
        description="x from the number of examples, or from the divergence of a client's labels from all labels; or ranks from "
        "a column",
    )
    column: str | None = Field(
        None, description="column of the data, or of the file of clients, that says each client's rank or class of rank"
    )
    ranks: dict[str, int] = Field(
        {}, description="rank of each class in the column, such as {phone: 2, laptop: 8}; without them the column has ranks"
    )
    normalized: bool = Field(True, description="stretch x so that the smallest client has 0 and the largest 1")

    @model_validator(mode="after")
    def _in_order(self) -> "Options":
        if self.min_rank > self.max_rank:
            raise ValueError(f"method.max_rank: {self.max_rank} is smaller than method.min_rank, {self.min_rank}; raise it")
        if (self.by == "column") != (self.column is not None):
            raise ValueError("method.column: names the column of by: column; give both, or none")
        if self.ranks and self.column is None:
            raise ValueError("method.ranks: are those of classes in a column; set method.by: column and method.column")
        return self


def build(options: Options, setting: Setting) -> Method:
    refuse_many(setting.holdings.num_clients)
    if options.column is not None:
        ranks = ranks_of_column(options, setting.column(options.column, "method.column"))
    else:
        ranks = choose_ranks(options, setting.holdings, setting.labels, len(setting.wordings))
    method = _lora.build(options, setting, options.max_rank, "method.max_rank")

    def of_ranks(some: Ints) -> torch.Tensor:
        return _lora.mask_of_ranks(method.shapes, some)

    def mask(clients: Ints) -> torch.Tensor:
        return of_ranks(ranks[clients])

    def sizes(clients: Ints) -> Ints:
        return ranks[clients] * (method.num_params // options.max_rank)

    how = f"{method.how}; clients have ranks {ranks.min()} to {ranks.max()}"
    portions = Portions(mask, sizes, lambda clients: ranks[clients], options.by == "column", of_ranks)
    return replace(method, portions=portions, how=how)


def refuse_many(num_clients: int) -> None:
    """Raise UserError for too many clients to read what they hold."""
    if num_clients > MANY:
        raise UserError(
            f"method.name: feddylora looks at the data of every registered client first; {num_clients:,} are more than "
            f"{MANY:,}; lower partition.num_clients, or take flora"
        )


def ranks_of_column(options: Options, texts: Sequence[str]) -> Ints:
    """The rank of every registered client from its text in a column, (num_clients,) int64.

    Raises UserError for a text that says no rank, and for a rank out of bounds.
    """
    ranks = np.zeros(len(texts), np.int64)
    for client, text in enumerate(texts):
        if options.ranks and text not in options.ranks:
            names = ", ".join(options.ranks)
            raise UserError(
                f"method.ranks: client {client} has {shown(text)} in column '{options.column}', but ranks are for {names}; add it"
            )
        value = options.ranks[text] if options.ranks else int(text) if NUMBER.fullmatch(text) else 0
        if not options.min_rank <= value <= options.max_rank:
            what = f"the rank {value}" if value else shown(text)
            raise UserError(
                f"method.column: client {client} has {what} in column '{options.column}'; give it a whole number from "
                f"method.min_rank, {options.min_rank}, to method.max_rank, {options.max_rank}"
            )
        ranks[client] = value
    return ranks


def choose_ranks(options: Options, holdings: Holdings, labels: Ints, num_classes: int) -> Ints:
    """The rank of every registered client by its data, (num_clients,) int64."""
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
