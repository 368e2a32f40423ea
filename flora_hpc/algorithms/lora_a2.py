"""LoRA-A2: A and B are trained in turn, and each client sends the ranks alone that change its model most (Koo et al., ACL 2025).

Odd rounds train B and even ones A, so that averaging is exact. Rank i of an update b of B changes B A by b[:, i] A[i], and the norm
of this is its importance. Each client sends a share of all ranks of all layers, those of the largest importance, so that layers
that matter more get more ranks. A rank that a client does not send counts as unchanged.

What differs from the paper: importance is that of the update that is sent, where the paper's clients train an epoch more to find
it. A and B have one learning rate.
"""

from typing import Literal

import torch
from pydantic import Field

from flora_hpc.algorithms import rolora
from flora_hpc.algorithms._algorithm import Algorithm, Now, Setting, Tensors
from flora_hpc.algorithms._lora import need_lora
from flora_hpc.algorithms.fedavg import mean
from flora_hpc.plugins import BaseOptions

FORMULA = "as rolora; each client sends the ranks of largest |b_i| |A_i|, or |B_i| |a_i|, of all layers"
UP, DOWN = "some ranks of the update of B or of A, and their places", "B or A"
PAPER = "arXiv 2410.22815"


class Options(BaseOptions):
    """How much is sent, and how it is averaged."""

    fraction: float = Field(0.25, gt=0, le=1, description="share of all ranks of all layers that each client sends; at least one")
    weights: Literal["examples", "uniform"] = Field("examples", description="by numbers of examples, or the same for every client")
    over: Literal["clients", "senders"] = Field(
        "clients", description="average a rank over all clients, or over those that sent it, which takes larger steps"
    )


def build(options: Options, setting: Setting) -> Algorithm:
    """The sharing part of rolora, and a mean of the ranks that are sent."""
    need_lora("lora_a2", setting)

    def finish(means: Tensors, now: Now) -> torch.Tensor:
        if options.over == "clients" or "held" not in means:
            return means["update"]
        return torch.where(means["held"] > 0, means["update"] / means["held"], 0.0)

    return Algorithm(
        sharing=rolora.build(rolora.Options(name="rolora"), setting).sharing,
        combine=mean(options.weights)._replace(finish=finish, by_rank=options.fraction),
        together=("sharing", "combine"),
    )
