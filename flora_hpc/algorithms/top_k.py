"""Top-k: clients send the largest numbers of their update, and add the rest to their next one (Aji and Heafield, EMNLP 2017).

The rest is the error feedback of Stich et al., "Sparsified SGD with Memory" (NeurIPS 2018): what was sent and what is remembered
add up to all updates so far. Of equal numbers, the first ones are sent.
"""

import torch
from pydantic import Field

from flora_hpc.algorithms._algorithm import Algorithm, Setting, Tensors, Transform
from flora_hpc.plugins import BaseOptions

FORMULA = "send the k largest of update + memory; memory = what was not sent"
UP, DOWN = "k numbers and their places, 4 bytes each", "adapter"
PAPER = "arXiv 1704.05021, 1809.07599"


class Options(BaseOptions):
    """How much is sent."""

    fraction: float = Field(0.01, gt=0, le=1, description="share of the numbers that are sent; at least one number")


def build(options: Options, setting: Setting) -> Algorithm:
    """Sparsification with error feedback."""

    def apply(rows: torch.Tensor, memory: Tensors) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        whole = rows + memory["error"]
        k = max(1, round(options.fraction * whole.shape[1])) if whole.shape[1] else 0
        largest = whole.abs().sort(dim=1, descending=True, stable=True).indices[:, :k]
        sent = torch.zeros_like(whole).scatter_(1, largest, whole.gather(1, largest))
        return sent, {"error": whole - sent}, torch.full((len(rows),), 8 * k, dtype=torch.int64)

    return Algorithm(transform=Transform(apply, ("error",)))
