"""HetLoRA: with clients of different ranks, pad with zeros, and weigh each client by the norm of its B A (Cho et al., EMNLP 2024).

A client of a small rank, or one that has learned little, then draws the ranks that it lacks less towards zero. Clients receive the
first ranks of the mean. The paper's self-pruning is not here: it changes a client's rank from round to round.
"""

import torch

from flora_hpc.algorithms._algorithm import Algorithm, Now, Setting, Tensors
from flora_hpc.algorithms._lora import need_lora
from flora_hpc.algorithms.fedavg import mean
from flora_hpc.plugins import BaseOptions

FORMULA = "in each layer, adapter + sum |B_i A_i| update_i / sum |B_i A_i|"
UP, DOWN = "update", "adapter"
PAPER = "arXiv 2401.06432"


class Options(BaseOptions):
    """Nothing to choose."""


def build(options: Options, setting: Setting) -> Algorithm:
    """A layer in which every client's B A is zero stays as it is."""
    need_lora("hetlora", setting)

    def finish(means: Tensors, now: Now) -> torch.Tensor:
        return torch.where(means["norms"] > 0, means["update"] / means["norms"], 0.0)

    combine = mean("uniform")._replace(finish=finish, by_norm=True)
    return Algorithm(combine=combine, together=("sharing", "combine"))
