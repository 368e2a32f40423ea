"""The interface of an aggregator, the server's rule: two pure functions and an explicit state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Aggregator(NamedTuple):
    """`init(adapter) -> state`; `apply(adapter, mean_update, state) -> (adapter, state)`.

    Adapters and updates are (num_params,) float32. Every rank applies the same function to the same values, so it draws no random
    numbers. A resumed run gets back the state alone, so the state holds whatever the rule remembers: a tensor, a number, None, or a
    tuple, list or dictionary of these.
    """

    init: Callable[[torch.Tensor], Any]
    apply: Callable[[torch.Tensor, torch.Tensor, Any], tuple[torch.Tensor, Any]]
