"""FedAdagrad: the server's steps shrink with the sum of squared directions (Reddi et al., ICLR 2021)."""

from flora_hpc.algorithms import _adaptive
from flora_hpc.algorithms._algorithm import Algorithm, Setting

FORMULA = "v = v + d^2; adapter + lr d / (sqrt v + tau), d the mean update"
UP, DOWN = "update", "adapter"
PAPER = "arXiv 2003.00295"


class Options(_adaptive.AdaptiveOptions):
    """The server's step."""


def build(options: Options, setting: Setting) -> Algorithm:
    """Adagrad's second moment, and no first one."""
    return _adaptive.build(options, 0.0, lambda square, new: square + new)
