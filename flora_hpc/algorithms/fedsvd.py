"""FedSVD: clients train B alone, and after each round A and B become a decomposition of B A (Lee et al., 2025).

The mean of B times the common A is exact. Its singular value decomposition gives an A with orthonormal rows for the next round.
"""

from typing import Literal

import torch
from pydantic import Field

from flora_hpc.algorithms import ffa_lora
from flora_hpc.algorithms._algorithm import Algorithm, LayerMeans, Setting
from flora_hpc.algorithms._lora import need_lora, svd_of_mean
from flora_hpc.algorithms.fedavg import mean
from flora_hpc.plugins import BaseOptions

FORMULA = "A frozen in a round; U S V = SVD of (mean B_i) A; B = U S, A = V"
UP, DOWN = "update of B", "adapter"
PAPER = "arXiv 2505.12805"


class Options(BaseOptions):
    """Weights of the mean."""

    weights: Literal["examples", "uniform"] = Field("examples", description="by numbers of examples, or the same for every client")


def build(options: Options, setting: Setting) -> Algorithm:
    """The sharing part of ffa_lora, with new factors at the end of each round."""
    need_lora("fedsvd", setting)

    def factors(means: LayerMeans) -> tuple[torch.Tensor, torch.Tensor]:
        left, values, right = svd_of_mean(means)
        return right, left * values

    return Algorithm(
        sharing=ffa_lora.build(ffa_lora.Options(name="ffa_lora"), setting).sharing,
        combine=mean(options.weights)._replace(factors=factors),
        together=("sharing", "combine", "server"),
    )
