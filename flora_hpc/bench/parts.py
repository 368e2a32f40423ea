"""Where the time of a piece of work goes: matrix products, attention, other operators, and what is between them.

PyTorch's profiler gives the seconds of each operator, without the operators that it calls. The profiler slows small operators down,
so that the work takes longer; the slowdown is measured as well.
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
    """Mean seconds of `work` by part; they add up to its seconds under the profiler.

    `work` gets the profiler as a context manager, enters it around the timed code, and returns the seconds. On a GPU, the seconds
    are the device's, and `between` is its idle time.
    """
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    means = dict.fromkeys(NAMES, 0.0)
    for _ in range(repeats):
        recorder = profile(activities=activities, acc_events=True)
        seconds = work(recorder)
        seconds_of = by_kind(recorder.key_averages(), "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total")
        seconds_of["between"] = seconds - sum(seconds_of.values())
        for name, value in seconds_of.items():
            means[name] += value / repeats
    return means


def by_kind(operators: Iterable[Any], microseconds: str) -> dict[str, float]:
    """Seconds of products, attention and other operators."""
    seconds = dict.fromkeys(NAMES[:3], 0.0)
    for operator in operators:
        seconds[kind(operator.key)] += getattr(operator, microseconds) / 1e6
    return seconds
