"""FLTrust: updates count as far as they point where the server's own update points, and are as long (Cao et al., NDSS 2021)."""

import torch
from pydantic import Field

from flora_hpc.algorithms import _rows
from flora_hpc.algorithms._algorithm import Algorithm, CombineRows, Setting
from flora_hpc.clip.steady import row_sums
from flora_hpc.plugins import BaseOptions

FORMULA = "adapter + sum t_i |own| / |update_i| update_i / sum t_i; t_i = max(0, cos(update_i, own)); own = the server's update"
UP, DOWN = _rows.UP, _rows.DOWN
PAPER = "arXiv 2012.13995"


class Options(BaseOptions):
    """The server's own data."""

    server_images: int = Field(
        100,
        ge=1,
        description="training images that the server has and no client, drawn by the seed; it trains on them in each round",
    )


def build(options: Options, setting: Setting) -> Algorithm:
    """The server trains as a client does. Where it trusts nobody, the direction is zero."""
    return Algorithm(combine=CombineRows(_rows.only, trusted, measure=squares_and_products, needs_server=True))


def squares_and_products(rows: torch.Tensor) -> torch.Tensor:
    """The squares of some columns of rows (n, width), and their products with the last row, added up: (2, n) float64."""
    return torch.stack([row_sums(rows.square()), row_sums(rows * rows[-1])])


def trusted(table: torch.Tensor) -> torch.Tensor:
    """The coefficients (1, n) of rows with these squared norms, and products with the last row, (2, n) float64."""
    norms, products = table[0].sqrt(), table[1]
    cosines = torch.where((norms > 0) & (norms[-1] > 0), products / (norms * norms[-1]), 0.0).clamp_(min=0)
    cosines[-1] = 0.0  # its own update says only whom the server trusts
    shares = torch.where(cosines > 0, cosines * norms[-1] / norms, 0.0)
    return (shares / cosines.sum() if cosines.any() else shares)[None]
