"""FedSA-LoRA: clients train A and B, send A, and keep their own B (Guo et al., ICLR 2025)."""

from flora_hpc.algorithms._algorithm import Algorithm, Setting, Sharing
from flora_hpc.algorithms._lora import B, need_lora
from flora_hpc.plugins import BaseOptions

FORMULA = "mean of A; each client keeps its B"
UP, DOWN = "update of A", "A"
PAPER = "arXiv 2410.01463"


class Options(BaseOptions):
    """Nothing to choose."""


def build(options: Options, setting: Setting) -> Algorithm:
    """The server's own B stays zero, so only a client's own model shows what was learned: see evaluate.personal."""
    need_lora("fedsa_lora", setting)
    return Algorithm(Sharing(lambda name, number: "private" if name.endswith(B) else "shared"))
