"""FedPer: the last layers stay with each client, the others are shared (Arivazhagan et al., 2019)."""

from pydantic import Field

from flora_hpc.algorithms import _blocks
from flora_hpc.algorithms._algorithm import Algorithm, Setting
from flora_hpc.plugins import BaseOptions

FORMULA = "mean of the first layers; each client keeps its last ones"
UP, DOWN = "update of the first layers", "first layers"
PAPER = "arXiv 1912.00818"


class Options(BaseOptions):
    """How much is private."""

    num_private: int = Field(1, ge=1, description="blocks of layers at the end that each client keeps for itself")


def build(options: Options, setting: Setting) -> Algorithm:
    """Layers are counted in blocks of the towers."""
    return _blocks.keep(options.num_private, setting, "fedper", from_end=True)
