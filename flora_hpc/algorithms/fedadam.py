"""FedAdam: the server steps like Adam, by default without its bias correction (Reddi et al., ICLR 2021)."""

from pydantic import Field

from flora_hpc.algorithms import _adaptive
from flora_hpc.algorithms._algorithm import Algorithm, Setting

FORMULA = "m = beta1 m + (1 - beta1) d; v = beta2 v + (1 - beta2) d^2; adapter + lr m / (sqrt v + tau), d the mean update"
UP, DOWN = "update", "adapter"
PAPER = "arXiv 2003.00295"


class Options(_adaptive.AdaptiveOptions):
    """The server's step and its two memories."""

    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    beta2: float = Field(0.99, ge=0, lt=1, description="decay of the second moment")
    bias_correction: bool = Field(False, description="correct the bias of both moments by their start, as Adam does")


def build(options: Options, setting: Setting) -> Algorithm:
    """Adam's moments."""
    corrected = (options.beta1, options.beta2) if options.bias_correction else None
    return _adaptive.build(
        options, options.beta1, lambda square, new: options.beta2 * square + (1 - options.beta2) * new, corrected
    )
