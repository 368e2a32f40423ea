"""Numbers with which nothing can be computed are refused; odd number formats too, from headers alone."""

import pytest
import torch

from flora_hpc.clip.fill import check_values, fill
from flora_hpc.errors import UserError
from tests.conftest import small_model

INFINITE = float("inf")


@pytest.mark.parametrize(
    ("name", "where", "value", "message"),
    [
        ("text_projection", (0, 0), float("nan"), r"text_projection: 1 of its 128 values is NaN or infinite; training diverged"),
        ("ln_final.bias", slice(2), -INFINITE, r"ln_final.bias: 2 of its 16 values are NaN or infinite"),
        ("visual.proj", slice(None), 0.0, r"holds 1 tensor of zeros alone \(visual.proj\), as where a copy broke off"),
        ("logit_scale", (), 100.0, r"logit_scale is 100, but must be a logarithm"),
        ("logit_scale", (), 1 / 0.07, r"logit_scale is 14.\d+, but must be a logarithm"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_values_that_spoil_every_score_are_refused(
    name: str, where: object, value: float, message: str, dtype: torch.dtype
) -> None:
    state = {key: tensor.clone().to(dtype) for key, tensor in small_model().state_dict().items()}
    check_values(state, "w.pt")
    state[name][where] = value  # type: ignore[index]
    with pytest.raises(UserError, match=f"model.pretrained: w.pt:? {message}"):
        check_values(state, "w.pt")


def test_opposite_infinities_are_found_and_large_numbers_are_not() -> None:
    check_values({"a": torch.full((1000,), 3e38)}, "w.pt")  # their sum is infinite, they are not
    with pytest.raises(UserError, match="a: 2 of its 3 values are NaN or infinite, and 1 more tensor hold such"):
        check_values({"a": torch.tensor([INFINITE, 1, -INFINITE]), "b": torch.tensor([INFINITE])}, "w.pt")


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_quantized_weights_are_refused_from_headers_too(device: str) -> None:
    model = small_model().to(device)
    state = dict(model.state_dict())
    fill(model, state, "w.pt")
    state["visual.proj"] = state["visual.proj"].to(torch.int8)
    with pytest.raises(
        UserError, match=r"w.pt does not fit the model: 1 tensor not of floating-point numbers .visual.proj is int8"
    ):
        fill(model, state, "w.pt")
