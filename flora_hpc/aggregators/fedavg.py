"""FedAvg: add the mean update, weighted by numbers of examples (McMahan et al., AISTATS 2017)."""

import torch

from flora_hpc.aggregators._aggregator import Aggregator
from flora_hpc.plugins import BaseOptions


class Options(BaseOptions):
    """Nothing to choose."""


def build(options: Options) -> Aggregator:
    def init(adapter: torch.Tensor) -> None:
        return None

    def apply(adapter: torch.Tensor, mean_update: torch.Tensor, state: None) -> tuple[torch.Tensor, None]:
        return adapter + mean_update, state

    return Aggregator(init, apply)
