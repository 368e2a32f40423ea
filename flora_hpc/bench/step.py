"""The plain step against the fast one: seconds, gradients, and how much of the machine's arithmetic the fast one uses.

Both sides have the same weights, images and tensors, and run in turn in one process. The plain side is `plain`: one client, on the
model as open_clip makes it. The fast side is `trainer.train`, which a run calls for a group of clients.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_backward_flop, sdpa_flop

from flora_hpc import extras, plugins, seeds
from flora_hpc.bench import methods, parts, plain, workload
from flora_hpc.bench.workload import Group, clock
from flora_hpc.clip import frozen, precision
from flora_hpc.clip.attention import unfuse
from flora_hpc.clip.frozen import tensor_cores
from flora_hpc.clip.load import load, load_open_clip
from flora_hpc.comm import devices, launch
from flora_hpc.comm.backends.serial import Serial
from flora_hpc.config import ClientConfig, CommConfig
from flora_hpc.data.inputs import Pixels
from flora_hpc.errors import UserError
from flora_hpc.losses import LOSSES
from flora_hpc.versions import versions

METHODS = ("flora", "fedprompt")  # that have a plain step
SIDE = 4096  # of the square matrices whose product measures the peak rate
SPREAD = 1e-3  # standard deviation of noise on the initial tensors of clients, so that LoRA's B is not zero
TYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}  # of products


@dataclass(frozen=True)
class Task:
    """The settings of the measurement."""

    model: str
    method: str
    classes: int
    batch_size: int  # images of a client step
    precision: str  # of the fast side; the plain one is fp32
    clients: int | None  # trained at once; None: as many as in a run with a large cohort
    steps: int  # of each client, in a repeat of the fast side
    repeats: int
    device: str  # auto, cpu or cuda


def check(task: Task) -> None:
    """Raise UserError for unknown settings and for methods without a plain step, before the measurement takes minutes."""
    methods.check(task.model, [task.method], task.device)
    if task.method not in METHODS:
        raise UserError(f"--method: {task.method} has no plain step to be measured against; take {' or '.join(METHODS)}")
    if task.method == "flora":
        extras.need("bench step", "peft")
    try:
        precision.prepare_device(
            task.precision, torch.device("cuda" if task.device != "cpu" and torch.cuda.device_count() else "cpu")
        )
    except UserError as error:
        text = str(error).replace("set model.precision: fp32", "take --precision fp32").replace("model.precision:", "--precision:")
        raise UserError(text) from None


def measure(task: Task, progress: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Build both sides, time them in turn, and compare their gradients."""
    me, comm = launch.detect(), Serial()
    device, num_threads = devices.pick(me, CommConfig(device=task.device)), devices.share_cores(comm, me)
    progress("building the model, and the features of random images")
    precision.prepare_device(task.precision, device)
    clip = load(methods.model_config(task.model), 0, device)
    group = workload.set_up(
        clip, task.method, task.classes, task.batch_size, task.clients, device, num_threads, precision=task.precision
    )
    client = plain_client(task, group, device)
    params = different_tensors(group, task.repeats + 1, device)
    rows = torch.from_numpy(group.batches(task.batch_size, 1, 0).examples[0]).to(device)  # (num_clients, batch)
    pixels = Pixels(group.images, clip.preprocess, device, num_threads)

    plain_seconds, plain_gradients, step_seconds = [], [], []
    for number, flat in enumerate(params):  # the first ones warm up
        progress("warming up" if number == 0 else f"repeat {number} of {task.repeats}")
        batch_rows = rows[number % len(rows)]
        client.assign(group.method.unpack(flat))
        batch_pixels, labels = pixels(batch_rows[None])[0], group.labels[batch_rows]
        with tensor_cores(False):
            start = clock(device)
            client.step(batch_pixels, labels)
            plain_seconds.append(clock(device) - start)
        plain_gradients.append(group.method.pack({name: tensor.grad for name, tensor in client.trained.items()}))  # type: ignore[misc]
        step_seconds.append(group.train(task.batch_size, task.steps, number) / (len(group.clients) * task.steps))

    progress("comparing gradients, counting operations, measuring parts and the peak")
    rows_of_params = rows[torch.arange(len(params)) % len(rows)]
    step_gflop = count_operations(lambda: group.train(task.batch_size, 1)) / len(group.clients) / 1e9
    peak_gflops = peak(device, task.precision, task.repeats)
    client_steps = len(group.clients) * task.steps
    part_seconds = parts.measure(lambda during: group.train(task.batch_size, task.steps, during=during), device, task.repeats)
    part_seconds = {name: value / client_steps for name, value in part_seconds.items()}
    fast, right = fast_gradients(group, params, rows_of_params), torch.stack(plain_gradients).to(device)
    plain_median, step_median = statistics.median(plain_seconds[1:]), statistics.median(step_seconds[1:])
    return {
        "model": task.model,
        "method": task.method,
        "classes": task.classes,
        "batch_size": task.batch_size,
        "precision": task.precision,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "plain_seconds": plain_median,
        "step_seconds": step_median,
        "step_parts_seconds": part_seconds,
        "profiled_step_seconds": sum(part_seconds.values()),
        "speedup": plain_median / step_median,
        "grad_rel_err": relative_error(fast, right),
        "grad_largest_err": largest_error(fast, right),
        "clients_per_step": len(group.clients),
        "step_gflop": step_gflop,
        "peak_gflops": peak_gflops,
        "peak_fraction": step_gflop / step_median / peak_gflops,
        "plain_repeat_seconds": plain_seconds[1:],
        "step_repeat_seconds": step_seconds[1:],
        "steps": task.steps,
        "repeats": task.repeats,
        "gradients_compared": len(params),
        "num_threads": num_threads,
        "processor": methods.processor(),
        "versions": versions(),
    }


def plain_client(task: Task, group: Group, device: torch.device) -> plain.Client:
    """The plain side, in fp32: open_clip's model, whose attention alone is unfused, for peft."""
    model, tokenize = load_open_clip(methods.model_config(task.model), 0, device)
    tensors = group.method.unpack(different_tensors(group, 1, device)[0])
    config = ClientConfig(batch_size=task.batch_size)
    if group.method.alpha is None:
        options: Any = plugins.member("methods", task.method).Options(name=task.method)
        captions = [f"{options.context} {name}." for name in group.names]
        return plain.prompt_client(model.to(device), tensors, tokenize(captions).to(device), config)
    tokens = tokenize(list(group.captions)).to(device)
    return plain.lora_client(unfuse(model).to(device), tensors, group.method.alpha, tokens, config)


def different_tensors(group: Group, count: int, device: torch.device) -> torch.Tensor:
    """Trained tensors of `count` clients, each with values of its own: (count, num_params) float32."""
    generators = [seeds.generator(0, "bench client", number) for number in range(count)]
    starts = torch.stack([group.method.pack(group.method.init(generator)).detach() for generator in generators])
    noise = torch.stack([torch.from_numpy(generator.standard_normal(starts.shape[1])) for generator in generators])
    return (starts + SPREAD * noise.float()).to(device)


def fast_gradients(group: Group, params: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Gradients of clients with tensors `params` (n, num_params), each on its batch of examples `rows` (n, batch)."""
    leaf = params.clone().requires_grad_()
    tensors = group.method.unpack(leaf)
    scores = group.method.logits(tensors, group.method.classes(tensors, None), group.inputs(rows), None)
    losses = LOSSES[ClientConfig().loss](
        scores.expand(len(rows), -1, -1), group.labels[rows], torch.ones_like(rows, dtype=torch.bool)
    )
    return torch.autograd.grad(losses.sum(), leaf)[0]


def relative_error(fast: torch.Tensor, right: torch.Tensor) -> float:
    """The norm of the difference over the norm of `right`, of all clients' gradients together."""
    fast, right = fast.double(), right.double()
    return float((fast - right).norm() / right.norm())


def largest_error(fast: torch.Tensor, right: torch.Tensor) -> float:
    """The largest absolute difference over the largest absolute value of `right`."""
    return ((fast - right).abs().max() / right.abs().max()).item()


def count_operations(work: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products, convolutions and attention that `work` executes."""
    counter = FlopCounterMode(display=False, custom_mapping=formulas())
    with counter:
        work()
    total: int = counter.get_total_flops()
    return total


def formulas() -> dict[Any, Any]:
    """Formulas that PyTorch's counter lacks: oneDNN's product and, in older versions, attention on CPUs."""
    aten = torch.ops.aten
    formula_of: dict[Any, Any] = {}
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        formula_of[torch.ops.mkldnn._linear_pointwise] = onednn_operations
    if aten._scaled_dot_product_flash_attention_for_cpu not in flop_registry:
        formula_of[aten._scaled_dot_product_flash_attention_for_cpu] = lambda q, k, v, *rest, **named: sdpa_flop(q, k, v)
        formula_of[aten._scaled_dot_product_flash_attention_for_cpu_backward] = lambda out, q, k, v, *rest, **named: (
            sdpa_backward_flop(out, q, k, v)
        )
    return formula_of


def onednn_operations(x: torch.Size, weight: torch.Size, *rest: Any, **named: Any) -> int:
    """Operations of x (..., in) times weight (out, in) transposed: 2 for each row, input and output."""
    return 2 * prod(x[:-1]) * weight[0] * weight[1]


def peak(device: torch.device, number_format: str, repeats: int) -> float:
    """The best measured rate of a large square product on this device and these threads, in GFLOP/s."""
    left, right = (torch.randn(SIDE, SIDE, device=device).to(TYPES[number_format]) for _ in range(2))
    products: list[Callable[[], torch.Tensor]] = [lambda: torch.mm(left, right), lambda: frozen.product(left, right, None)]
    seconds = []
    with torch.inference_mode(), tensor_cores(number_format == "tf32"):
        for product in products:
            for _ in range(repeats + 1):
                start = clock(device)
                product()
                seconds.append(clock(device) - start)
    return 2 * SIDE**3 / min(seconds) / 1e9
