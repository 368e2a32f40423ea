"""FFA-LoRA: every A stays at its common start, clients train and send B, so that averaging is exact (Sun et al., ICLR 2024)."""

from flora_hpc.algorithms._algorithm import Algorithm, Setting, Sharing
from flora_hpc.algorithms._lora import A, need_lora
from flora_hpc.plugins import BaseOptions

FORMULA = "A frozen; mean of B"
UP, DOWN = "update of B", "B"
PAPER = "arXiv 2403.12313"


class Options(BaseOptions):
    """Nothing to choose."""


def build(options: Options, setting: Setting) -> Algorithm:
    """Other trained tensors than A are shared."""
    need_lora("ffa_lora", setting)
    return Algorithm(Sharing(lambda name, number: "frozen" if name.endswith(A) else "shared"))
