"""RoLoRA: clients train and send B in odd rounds and A in even ones, so that averaging is exact (Chen et al., 2025)."""

from flora_hpc.algorithms._algorithm import Algorithm, Setting, Sharing
from flora_hpc.algorithms._lora import A, B, need_lora
from flora_hpc.plugins import BaseOptions

FORMULA = "odd rounds: A frozen, mean of B; even rounds: B frozen, mean of A"
UP, DOWN = "update of B or of A", "B or A"
PAPER = "arXiv 2502.01755"


class Options(BaseOptions):
    """Nothing to choose."""


def build(options: Options, setting: Setting) -> Algorithm:
    """The first round trains B, since A has no gradient while B is zero."""
    need_lora("rolora", setting)
    frozen = (B, A)  # in even and in odd rounds
    return Algorithm(Sharing(lambda name, number: "frozen" if name.endswith(frozen[number % 2]) else "shared", period=2))
