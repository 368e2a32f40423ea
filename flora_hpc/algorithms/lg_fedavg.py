"""LG-FedAvg: the first layers stay with each client, the others are shared (Liang et al., 2020)."""

from pydantic import Field

from flora_hpc.algorithms import _blocks
from flora_hpc.algorithms._algorithm import Algorithm, Setting
from flora_hpc.plugins import BaseOptions

FORMULA = "mean of the last layers; each client keeps its first ones"
UP, DOWN = "update of the last layers", "last layers"
PAPER = "arXiv 2001.01523"


class Options(BaseOptions):
    """How much is private."""

    num_private: int = Field(1, ge=1, description="blocks of layers at the beginning that each client keeps for itself")


def build(options: Options, setting: Setting) -> Algorithm:
    """Layers are counted in blocks of the towers."""
    return _blocks.keep(options.num_private, setting, "lg_fedavg", from_end=False)
