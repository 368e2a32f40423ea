import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from flora_hpc import groupsize
from flora_hpc.bench import methods, parts, plain, step, workload
from flora_hpc.cli._bench_step import PARTS
from flora_hpc.cli.bench import app
from flora_hpc.clip import frozen, precision
from flora_hpc.clip.load import load
from flora_hpc.errors import UserError

PROMISED = {
    "plain_seconds", "step_seconds", "speedup", "grad_rel_err", "clients_per_step", "peak_fraction", "model", "classes",
    "batch_size", "precision", "device",
}  # fmt: skip
TINY = ["--model", "flora-tiny", "--classes", "3", "--batch-size", "4", "--clients", "2", "--steps", "1", "--repeats", "2"]


@pytest.fixture(autouse=True)
def small_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "SIDE", 64)


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["step", *arguments], env={"COLUMNS": "80"})


def refusal(*arguments: str) -> str:
    error = bench(*arguments).exception
    assert isinstance(error, UserError)
    return str(error)


def task(method: str = "flora", **changes: Any) -> step.Task:
    settled = {"classes": 3, "batch_size": 4, "precision": "fp32", "clients": 2, "steps": 1, "repeats": 1, "device": "cpu"}
    return step.Task(model="flora-tiny", method=method, **(settled | changes))


@pytest.mark.parametrize("method", step.METHODS)
def test_both_sides_are_timed_and_have_the_same_gradients(method: str) -> None:
    result = bench(*TINY, "--method", method, "--device", "cpu", "--json")
    assert result.exit_code == 0, result.exception
    found = json.loads(result.stdout)
    assert set(found) >= PROMISED
    wanted = {"model": "flora-tiny", "method": method, "classes": 3, "batch_size": 4, "clients_per_step": 2, "device": "cpu"}
    assert {key: found[key] for key in wanted} == wanted
    assert found["speedup"] == found["plain_seconds"] / found["step_seconds"] > 0
    assert (len(found["plain_repeat_seconds"]), len(found["step_repeat_seconds"])) == (2, 2)
    assert sum(found["plain_repeat_seconds"]) / 2 == pytest.approx(found["plain_seconds"])
    assert 0 < found["grad_rel_err"] < 1e-4
    assert found["gradients_compared"] == 3
    assert found["peak_fraction"] == pytest.approx(found["step_gflop"] / found["step_seconds"] / found["peak_gflops"])


def test_the_parts_of_a_step_add_up_to_it() -> None:
    found = step.measure(task(clients=8, batch_size=32, steps=2, repeats=3))
    spent = found["step_parts_seconds"]
    assert spent.keys() == PARTS.keys() == set(parts.NAMES)
    assert min(spent.values()) > 0
    assert sum(spent.values()) == pytest.approx(found["profiled_step_seconds"])
    assert 0.3 < found["profiled_step_seconds"] / found["step_seconds"] < 10  # other work may run beside either


def test_a_group_is_as_large_as_in_a_run() -> None:
    found = step.measure(task(clients=None, batch_size=1))
    assert found["clients_per_step"] == groupsize.MAX_CLIENTS


@pytest.mark.long
def test_bf16_is_measured_against_a_plain_side_in_fp32() -> None:
    if not precision.NATIVE_BF16 & precision.processor_flags():
        pytest.skip("this processor does not multiply in bfloat16")
    exact, rounded = (step.measure(task(precision=name)) for name in ("fp32", "bf16"))
    assert exact["grad_rel_err"] < 1e-4 < 1e-3 < rounded["grad_rel_err"] < 0.2  # bfloat16 has eight bits
    assert rounded["step_gflop"] == exact["step_gflop"]


def stronger_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    attach = plain.attach
    monkeypatch.setattr(plain, "attach", lambda model, tensors, alpha: attach(model, tensors, 1.1 * alpha))


def other_images(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = plain.loss_of_batch
    monkeypatch.setattr(plain, "loss_of_batch", lambda model, pixels, *rest: loss(model, pixels.flip(-1) + 0.1, *rest))


@pytest.mark.parametrize("disturb", [stronger_adapters, other_images], ids=lambda function: function.__name__)
def test_an_error_in_one_side_is_seen_in_the_gradients(
    disturb: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    disturb(monkeypatch)
    assert step.measure(task())["grad_rel_err"] > 1e-3


def test_errors_by_length_and_by_the_largest_number() -> None:
    right = torch.tensor([[1.0, -4.0], [2.0, 0.0]])
    found = torch.tensor([[1.0, -4.0], [2.0, 0.5]])
    assert step.largest_error(found, right) == 0.125
    assert step.relative_error(found, right) == pytest.approx((0.25 / 21) ** 0.5)


def test_clients_that_are_compared_differ_and_train_adapters_that_take_part() -> None:
    clip = load(methods.model_config("flora-tiny"), 0, torch.device("cpu"))
    group = workload.set_up(clip, "flora", 3, 4, 2, torch.device("cpu"), 1)
    params = step.different_tensors(group, 2, torch.device("cpu"))
    for name, both in group.method.unpack(params).items():
        assert both.abs().amax() > 0, name
        assert not both[0].equal(both[1]), name


def test_the_plain_side_is_open_clips_own_model_but_for_its_split_attention_and_heads() -> None:
    clip = load(methods.model_config("flora-tiny"), 0, torch.device("cpu"))
    group = workload.set_up(clip, "flora", 3, 4, 2, torch.device("cpu"), 1)
    modules = list(step.plain_client(task(), group, torch.device("cpu")).model.modules())
    ours = {type(module).__name__ for module in modules if type(module).__module__.startswith("flora_hpc")}
    assert ours == {"SplitAttention", "SplitMlp", "Projection"}
    assert any(type(module).__module__.startswith("peft") for module in modules)


def test_operations_of_both_passes_are_counted() -> None:
    """Rows 2 x 3, 16 in, 8 out: as many backwards, where the gradient of x alone is asked for; then an 8 x 6 by 6 x 8 product."""
    layer = torch.nn.Linear(16, 8).requires_grad_(False)
    x = torch.randn(2, 3, 16, requires_grad=True)
    forward = 2 * 2 * 3 * 16 * 8
    assert step.count_operations(lambda: frozen.linear(x, layer)) == forward
    assert step.count_operations(lambda: frozen.linear(x, layer).sum().backward()) == 2 * forward
    assert step.count_operations(lambda: torch.randn(8, 6) @ torch.randn(6, 8)) == 2 * 8 * 6 * 8


def test_operations_of_attention_are_counted() -> None:
    """Two heads, 5 x 5 positions, 4 wide: scores and their mix; five products of that size backwards, of which two are anew."""
    q = torch.randn(1, 2, 5, 4, requires_grad=True)

    def attend() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, q, q)

    product = 2 * 2 * 5 * 5 * 4
    assert step.count_operations(attend) == 2 * product
    assert step.count_operations(lambda: attend().sum().backward()) == (2 + 5) * product


def test_the_peak_is_the_best_rate_of_either_product(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0, 4, 4, 6, 6, 16, 16, 26])  # torch.mm takes 4 and 2 seconds, oneDNN's product 10 and 10
    monkeypatch.setattr(step, "clock", lambda device: next(ticks))
    assert step.peak(torch.device("cpu"), "fp32", 1) == pytest.approx(2 * 64**3 / 2 / 1e9)


def test_the_table_for_people() -> None:
    result = bench(*TINY)
    assert result.exit_code == 0, result.exception
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "flora-tiny, flora, 3 classes, 4 images a step, fp32"
    text = result.stdout
    for name in (
        "plain step",
        "fast step",
        "  products",
        "  attention",
        "  other",
        "  between",
        "ratio",
        "gradient error",
        "operations",
        "peak",
        "share of the peak",
    ):
        assert f"\n {name} " in text, name
    assert "a client's share, 2 at once" in text


def test_mistakes_are_answered_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "measure", lambda *rest: pytest.fail("measured"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert refusal("--method", "fedlc") == "--method: fedlc has no plain step to be measured against; take flora or fedprompt"
    assert "no method 'flore'; did you mean 'flora'?" in refusal("--method", "flore")
    assert "--model: no model 'ViT-B-3'; did you mean 'ViT-B-32'?" in refusal("--model", "ViT-B-3")
    assert refusal("--precision", "tf32") == (
        "--precision: tf32 is for NVIDIA GPUs, and there is none in this run; take --precision fp32"
    )
    assert refusal("--device", "cuda").endswith("take --device auto or cpu")
    for option in ("--classes", "--batch-size", "--clients", "--steps", "--repeats"):
        assert bench(option, "0").exit_code == 2
