"""Dual LoRA: clients train two adapters, send the small one and keep the other (after Nguyen et al., 2025)."""

from flora_hpc.algorithms._algorithm import Algorithm, Setting, Sharing
from flora_hpc.errors import UserError
from flora_hpc.plugins import BaseOptions

FORMULA = "mean of A and B; each client keeps its A2 and B2"
UP, DOWN = "update of A and B", "A and B"
PAPER = "arXiv 2503.07552"


class Options(BaseOptions):
    """Nothing to choose."""


def build(options: Options, setting: Setting) -> Algorithm:
    """The server's own B2 stays zero, so only a client's own model shows its private adapter: see evaluate.personal."""
    if not any(".private_" in name for name in setting.names):
        raise UserError(
            f"{setting.section}.name: dual_lora needs a second adapter to keep, and this method has none; "
            "take method.name: dual_lora"
        )
    return Algorithm(Sharing(lambda name, number: "private" if ".private_" in name else "shared"))
