"""HLoRA: as FlexLoRA, with orthonormal columns in B, and the singular values in A (after an NVIDIA FLARE contribution).

Its code stacks the clients' factors, each times the root of its weight, and decomposes the stacks by QR and a small singular value
decomposition. Here B of each client is weighted, and the mean of B A is decomposed as flexlora does.
"""

from typing import Literal

from pydantic import Field

from flora_hpc.algorithms import flexlora
from flora_hpc.algorithms._algorithm import Algorithm, Setting
from flora_hpc.algorithms._lora import need_lora
from flora_hpc.plugins import BaseOptions

FORMULA = "U S V = SVD of mean B_i A_i, cut to the adapter's rank; B = U, A = S V"
UP, DOWN = "update", "adapter"
PAPER = ""


class Options(BaseOptions):
    """Weights of the mean."""

    weights: Literal["examples", "uniform"] = Field("examples", description="by numbers of examples, or the same for every client")


def build(options: Options, setting: Setting) -> Algorithm:
    """The factors of flexlora with values: A."""
    need_lora("hlora", setting)
    return flexlora.build(flexlora.Options(name="flexlora", weights=options.weights, values="A"), setting)
