import time
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flora_hpc.bench import parts


def test_operators_by_kind() -> None:
    assert (
        parts.kind("aten::bmm") == parts.kind("mkldnn::_linear_pointwise") == parts.kind("aten::mkldnn_convolution") == "products"
    )
    assert parts.kind("aten::_scaled_dot_product_flash_attention_for_cpu_backward") == "attention"
    assert parts.kind("aten::mul") == parts.kind("aten::_softmax") == parts.kind("_ClientProducts") == "other"


def test_seconds_are_added_up_by_kind() -> None:
    operators = [SimpleNamespace(key=key, time=1e6 * seconds) for key, seconds in (("aten::mm", 2), ("aten::bmm", 1), ("add", 4))]
    assert parts.by_kind(operators, "time") == {"products": 3.0, "attention": 0.0, "other": 4.0}


def test_each_part_is_found_where_it_is() -> None:
    """Forwards and backwards; what sleeps is no operator, and what is not timed does not count."""
    x, q = torch.randn(600, 600, requires_grad=True), torch.randn(1, 4, 200, 16, requires_grad=True)

    def work(during: AbstractContextManager[Any], what: str) -> float:
        (x.detach() @ x.detach()).sort()
        with during:
            started = time.perf_counter()
            if what == "products":
                for _ in range(5):
                    (x @ x).backward(x.detach())
            elif what == "attention":
                for _ in range(5):
                    torch.nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()
            elif what == "other":
                for _ in range(5):
                    x.detach().sort()
            else:
                time.sleep(0.1)
            return time.perf_counter() - started

    for what in parts.NAMES:
        work(nullcontext(), what)  # warms up
        seconds: list[float] = []

        def timed(during: AbstractContextManager[Any], what: str = what, seconds: list[float] = seconds) -> float:
            seconds.append(work(during, what))
            return seconds[-1]

        found = parts.measure(timed, torch.device("cpu"), 2)
        assert sum(found.values()) == pytest.approx(sum(seconds) / 2)
        assert max(found, key=lambda name: found[name]) == what, found
