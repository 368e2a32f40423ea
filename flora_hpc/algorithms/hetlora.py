"""HetLoRA: with clients of different ranks, pad with zeros, and weigh each client by the norm of its B A (Cho et al., EMNLP 2024).

A client of a small rank, or one that has learned little, then draws the ranks that it lacks less towards zero. Clients receive the
first ranks of the mean.

With `prune`, clients also drop ranks that they do not need: the paper's self-pruning. A client of rank r adds a penalty to its
loss, `prune_penalty` times the sum over layers of |B| |A| of its last ranks, those from floor(prune r) on. Where this sum is
smaller after its local training than before, the client drops these ranks in all layers. It sends what is left, and receives and
trains no more from then on. As in the paper, a client has one rank for all layers, and ranks never grow. Beyond the paper, a client
keeps at least `least_rank` ranks, and the penalty adds nothing to the gradient of a factor that is zero, as B is at first.
"""

import torch
from pydantic import Field

from flora_hpc.algorithms._algorithm import Algorithm, Local, Now, Pruning, Setting, Tensors
from flora_hpc.algorithms._lora import need_lora
from flora_hpc.algorithms.fedavg import mean
from flora_hpc.plugins import BaseOptions

FORMULA = (
    "in each layer, adapter + sum |B_i A_i| update_i / sum |B_i A_i|; with prune, loss + prune_penalty sum |B_last| |A_last|, and "
    "clients whose sum became smaller drop these last ranks"
)
UP, DOWN = "update", "adapter"
PAPER = "arXiv 2401.06432"


class Options(BaseOptions):
    """Whether clients drop ranks."""

    prune: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of its ranks that a client has left when it drops some, such as 0.99; null: none drops any",
    )
    prune_penalty: float = Field(
        0.1, ge=0, allow_inf_nan=False, description="weight of the size of the ranks that may be dropped, in the loss; with prune"
    )
    least_rank: int = Field(1, ge=1, description="ranks that a client always keeps; with prune")


def build(options: Options, setting: Setting) -> Algorithm:
    """A layer in which every client's B A is zero stays as it is."""
    need_lora("hetlora", setting)

    def finish(means: Tensors, now: Now) -> torch.Tensor:
        return torch.where(means["norms"] > 0, means["update"] / means["norms"], 0.0)

    pruning = None if options.prune is None else Pruning(options.prune, options.prune_penalty, options.least_rank)
    local = None if pruning is None else Local(pruning=pruning)
    combine = mean("uniform")._replace(finish=finish, by_norm=True)
    return Algorithm(local=local, combine=combine, together=("sharing", "combine"))
