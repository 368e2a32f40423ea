"""FLoRA: low-rank adapters on projections of the text tower, image tower frozen (arXiv 2404.15182).

y = W x + alpha * B (A x), with alpha itself as the scale, A ~ N(0, 1/rank) and B = 0 at the start, as in the paper's code.
"""

from pydantic import Field

from flora_hpc.methods import _lora
from flora_hpc.methods._method import Method, Setting


class Options(_lora.LoraOptions):
    """Size and place of the adapters."""

    rank: int = Field(2, ge=1, description="inner size of an adapter")


def build(options: Options, setting: Setting) -> Method:
    return _lora.build(options, setting, options.rank, "method.rank")
