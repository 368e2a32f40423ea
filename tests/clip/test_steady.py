"""Weight gradients that are the same bits for any number of threads, where PyTorch's own are not."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from flora_hpc.clip.attention import unfuse
from flora_hpc.clip.steady import Patches, SteadyNorm, product, row_sums, steady
from tests.conftest import small_model

GRADIENTS = """
import flora_hpc, hashlib, sys, torch
from torch import nn
from flora_hpc.clip.steady import Patches, SteadyNorm
from flora_hpc.clip.lora import Lora
from flora_hpc.clip.text import Layers
from flora_hpc.methods._method import cosine_scores, products
torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)
norm, patches, scale = SteadyNorm(nn.LayerNorm(768)), Patches(nn.Conv2d(3, 256, 16, 16)), torch.zeros(1, 1, 1, requires_grad=True)
outputs = [norm(torch.randn(64, 50, 768)).sin(), patches(torch.randn(32, 3, 128, 128)).sin()]
outputs.append(cosine_scores(scale.exp(), torch.randn(1, 256, 512), torch.randn(1, 9, 512)).sin())
parameters = [*norm.parameters(), *patches.parameters(), scale]
gradients = torch.autograd.grad(sum(output.sum(-1).sum(-1).sum() for output in outputs), parameters)
small = [products(torch.randn(1, n, 128), torch.randn(1, c, 128)) for n in (1, 4, 8, 32) for c in (10, 47)]
gradients = [*gradients, *small]
for n in (1, 2, 3, 7, 21):  # a lone client's low-rank update, and the weights of its own
    x, down, up = torch.randn(1, n, 128), torch.randn(1, 4, 128, requires_grad=True), torch.randn(1, 512, 4, requires_grad=True)
    lora = Lora(down, up, 2.0)
    own = {"p.weight": torch.randn(1, 512, 128, requires_grad=True), "p.bias": torch.randn(1, 512, requires_grad=True)}
    for result, leaves in ((lora(x), lora[:2]), (Layers("", {}, own).linear(x, None, "p"), own.values())):
        gradients += [result.detach(), *torch.autograd.grad(result.sin().sum(-1).sum(), leaves)]
print(*(hashlib.sha256(gradient.numpy().tobytes()).hexdigest()[:12] for gradient in gradients))
"""


def test_gradients_and_small_products_are_the_same_bits_for_one_two_and_three_threads() -> None:
    def bits(threads: int) -> str:
        command = [sys.executable, "-c", GRADIENTS, str(threads)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert bits(1) == bits(2) == bits(3)


@pytest.mark.parametrize("num_threads", [2, 3, 8])
def test_a_clients_product_and_its_gradients_are_the_same_bits_beside_any_others(num_threads: int) -> None:
    """Random shapes, of which MKL alone gets some wrong; alone, in pairs and all together, against all on one thread."""
    rng, before, wrong = np.random.default_rng(num_threads), torch.get_num_threads(), 0

    def numbers(left: torch.Tensor, right: torch.Tensor, threads: int) -> list[torch.Tensor]:
        torch.set_num_threads(threads)
        left, right = left.clone().requires_grad_(), right.clone().requires_grad_()
        result = product(left, right)
        return [result.detach(), *torch.autograd.grad(result.sin().sum(), [left, right])]

    try:
        for _ in range(150):
            clients = int(rng.integers(2, 11))
            n, k, m = (int(size) for size in rng.choice([1, 2, 3, 4, 8, 10, 17, 24, 48, 64, 100, 127, 128, 192, 300], 3))
            left, right = torch.randn(clients, n, k), torch.randn(clients, m, k).transpose(1, 2)
            together = numbers(left, right, 1)
            for some in (slice(0, 1), slice(clients - 2, clients), slice(0, clients)):
                for part, expected in zip(numbers(left[some], right[some], num_threads), together, strict=True):
                    assert part.equal(expected[some]), (clients, n, k, m, some)
                wrong += not (left[some] @ right[some]).equal(together[0][some])
    finally:
        torch.set_num_threads(before)
    assert wrong or not is_amd(), "MKL has learned it: the detour may go"


@pytest.mark.parametrize("num_columns", [40_000, 1_000_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_sum_of_a_clients_row_is_the_same_bits_beside_any_others(num_columns: int, dtype: torch.dtype) -> None:
    rows, before = torch.randn(7, num_columns, dtype=dtype, generator=torch.Generator().manual_seed(0)), torch.get_num_threads()
    expected = row_sums(rows[3:4])
    torch.testing.assert_close(expected, rows[3:4].double().sum(1))
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            for batch, number in ((rows[3:4], 0), (rows[2:4], 1), (rows, 3), (rows.t().contiguous().t(), 3)):
                assert row_sums(batch)[number : number + 1].equal(expected)
    finally:
        torch.set_num_threads(before)


def test_sums_of_short_rows() -> None:
    assert row_sums(torch.tensor([[1.0, 2.0], [3.0, -4.0]])).tolist() == [3, -1]
    assert row_sums(torch.ones(2, 0)).tolist() == [0, 0]


def is_amd() -> bool:
    """Where it was measured."""
    return "AMD" in Path("/proc/cpuinfo").read_text()


def test_an_operand_that_clients_share_gets_the_sum_of_their_gradients() -> None:
    left, right = torch.randn(1, 5, 4, dtype=torch.float64), torch.randn(3, 4, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(product, (left.requires_grad_(), right.requires_grad_()))
    assert torch.autograd.gradcheck(
        product, (right.detach().transpose(1, 2).requires_grad_(), left.detach()[:, :4].requires_grad_())
    )


def test_a_norm_computes_the_same_trained_and_frozen() -> None:
    norm, x = nn.LayerNorm(6, dtype=torch.float64), torch.randn(2, 3, 6, dtype=torch.float64)
    norm.weight.data.uniform_()
    norm.bias.data.uniform_()
    trained = SteadyNorm(norm)(x)
    frozen = SteadyNorm(norm.requires_grad_(False))(x)
    torch.testing.assert_close(trained, norm(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(frozen, norm(x), rtol=0, atol=0)


@pytest.mark.parametrize(("size", "bias"), [((8, 8), False), ((9, 11), True), ((4, 4), True)])
def test_patches_are_those_of_the_convolution(size: tuple[int, int], bias: bool) -> None:
    conv = nn.Conv2d(3, 5, 4, 4, bias=bias, dtype=torch.float64)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(Patches(conv)(x), conv(x), rtol=1e-12, atol=1e-12)


def test_a_whole_model_keeps_its_names_and_numbers() -> None:
    plain, model = unfuse(small_model(dtype=torch.float64)), steady(unfuse(small_model(dtype=torch.float64)))
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(SteadyNorm) == 11  # two in each of four blocks, ln_pre, ln_post, ln_final
    assert kinds.count(Patches) == 1
    assert list(model.state_dict()) == list(plain.state_dict())
    pixels = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(model.encode_image(pixels), plain.encode_image(pixels), rtol=1e-11, atol=1e-11)


def test_overlapping_convolutions_are_left_alone() -> None:
    convs = nn.Sequential(nn.Conv2d(3, 4, 3, 2, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 2, 2, groups=2))
    assert [type(layer) for layer in steady(convs)] == [nn.Conv2d] * 3


def test_norms_of_another_kind_are_left_alone() -> None:
    """timm's LayerNorm2d is a LayerNorm, but of channels."""

    class LayerNorm2d(nn.LayerNorm):
        pass

    assert [type(layer) for layer in steady(nn.Sequential(LayerNorm2d(4)))] == [LayerNorm2d]
