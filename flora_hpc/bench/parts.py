"""Where the time of a piece of work goes: matrix products, attention, other operators, and what is between them.

PyTorch's profiler tells the seconds of each operator, without those that it calls. It slows small operators down, so that the work
takes somewhat longer than alone; how much is measured as well.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "_linear_pointwise", "mkldnn_linear", "_addmm_activation"}
CONVOLUTIONS = ("convolution", "conv")  # patches of images
ATTENTION = ("scaled_dot_product", "flash_attention", "efficient_attention", "cudnn_attention")
NAMES = ("products", "attention", "other", "between")


def kind(operator: str) -> str:
    """The part to which an operator such as 'aten::bmm' belongs."""
    name = operator.split("::")[-1]
    if any(word in name for word in ATTENTION):
        return "attention"
    product = name in PRODUCTS or any(word in name for word in CONVOLUTIONS)
    return "products" if product else "other"


def measure(work: Callable[[AbstractContextManager[Any]], float], device: torch.device, repeats: int) -> dict[str, float]:
    """Mean seconds of `work` by part, which add up to those that it took under the profiler.

    `work` enters what it is given around that which it times, and returns the seconds. On a GPU, the seconds are the device's, and
    `between` is when it is idle.
    """
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    found = dict.fromkeys(NAMES, 0.0)
    for _ in range(repeats):
        recorder = profile(activities=activities, acc_events=True)
        seconds = work(recorder)
        spent = by_kind(recorder.key_averages(), "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total")
        spent["between"] = seconds - sum(spent.values())
        for name, value in spent.items():
            found[name] += value / repeats
    return found


def by_kind(operators: Iterable[Any], microseconds: str) -> dict[str, float]:
    """Seconds of products, attention and other operators."""
    spent = dict.fromkeys(NAMES[:3], 0.0)
    for operator in operators:
        spent[kind(operator.key)] += getattr(operator, microseconds) / 1e6
    return spent
