"""Dual LoRA: on each layer a small adapter to share and a larger one that a client may keep (after arXiv 2503.07552).

y = W x + alpha * (B A x + B2 A2 x), with A ~ N(0, 1/rank), A2 ~ N(0, 1/private_rank) and B = B2 = 0 at the start. The method only
names the two adapters; algorithm dual_lora keeps A2 and B2 with each client. The paper also prunes the private adapter; that is not
done here.
"""

from pydantic import Field

from flora_hpc.methods import _lora
from flora_hpc.methods._method import Method, Setting


class Options(_lora.LoraOptions):
    """Sizes and place of the adapters."""

    rank: int = Field(2, ge=1, description="inner size of the shared adapter")
    private_rank: int = Field(8, ge=1, description="inner size of the private adapter")


def build(options: Options, setting: Setting) -> Method:
    return _lora.build(options, setting, options.rank, "method.rank", options.private_rank)
