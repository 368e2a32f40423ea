"""Seconds per client step and peak memory of methods, each in a process of its own, so that its peak is its own.

The measured code is that of a run with a group of clients: `experiment.with_inputs`, then `trainer.train`. Weights and images are
random.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from flora_hpc import plugins
from flora_hpc.bench import workload
from flora_hpc.clip import weights
from flora_hpc.clip.load import load, load_open_clip
from flora_hpc.comm import devices, launch
from flora_hpc.comm.backends.serial import Serial
from flora_hpc.config import CommConfig, ModelConfig
from flora_hpc.errors import UserError, reason
from flora_hpc.round import peak_memory_bytes

LOWER = "lower --batch-size, --classes or --clients, or leave the method out of --methods"


@dataclass(frozen=True)
class Task:
    """The settings of the measurement."""

    method: str
    model: str
    classes: int
    batch_size: int  # images of a client step
    clients: int | None  # trained in one batch of tensors; None: as many as in a run with a large cohort
    steps: int  # of each client, in a repeat
    repeats: int
    device: str  # auto, cpu or cuda
    weights_file: str | None = None  # of random weights, to be mapped; None: they are drawn in memory, or bundled


@dataclass(frozen=True)
class Measured:
    """The result of the measurement."""

    num_params: int  # trained numbers of a client
    payload_bytes: int
    sees: str  # features or pixels
    clients_at_once: int
    seconds_per_client_step: float  # median of the repeats
    repeat_seconds: list[float]  # a repeat is clients_at_once x steps client steps
    peak_memory_bytes: int  # largest resident set of the process; on a GPU, most memory that tensors held there
    resident_before_bytes: int  # the same before the model was built: the share of the libraries
    device: str
    num_threads: int


def check(model: str, methods: Sequence[str], device: str) -> None:
    """Raise UserError for unknown methods, models and devices, before the measurement takes minutes."""
    for name in methods:
        if methods.count(name) > 1:
            raise UserError(f"--methods: names {name} twice; name it once")
        plugins.member("methods", name)
    try:
        weights.find(model_config(model))
    except UserError as error:
        raise UserError(str(error).replace("model.name:", "--model:")) from None
    if device == "cuda" and torch.cuda.device_count() == 0:
        raise UserError("--device cuda: PyTorch sees no GPU here; take --device auto or cpu")
    if (size := launch.detect().size) > 1:
        raise UserError(f"this part of bench is for one process, but the launcher started {size}; start it without a launcher")


def measure_alone(task: Task) -> Measured:
    """`measure` in a fresh process. Raises UserError when that process refuses the task or dies."""
    child = subprocess.run([sys.executable, "-m", __name__, json.dumps(asdict(task))], stdout=subprocess.PIPE, text=True)
    if child.returncode < 0:
        raise UserError(
            f"{task.method}: its process was killed by signal {-child.returncode}, most likely because memory ran out; {LOWER}"
        )
    if child.returncode > 0:
        raise UserError(f"{task.method}: its process failed with exit code {child.returncode}; what it said stands above")
    answer = json.loads(child.stdout.splitlines()[-1])
    if "error" in answer:
        raise UserError(f"{task.method}: {answer['error']}")
    return Measured(**answer)


def measure(task: Task) -> Measured:
    """Build the model and the method as a run does, and train one group of clients."""
    me, comm = launch.detect(), Serial()
    device, num_threads = devices.pick(me, CommConfig(device=task.device)), devices.share_cores(comm, me)
    before = 0 if device.type == "cuda" else resident_bytes()
    clip = load(model_config(task.model, weights_file=task.weights_file), 0, device)
    group = workload.set_up(clip, task.method, task.classes, task.batch_size, task.clients, device, num_threads)
    if group.method.sees == "features":
        del clip.model.visual  # as in a run
    group.train(task.batch_size, 1)  # warms up
    seconds = [group.train(task.batch_size, task.steps, number) for number in range(1, task.repeats + 1)]
    return Measured(
        num_params=group.method.num_trained,
        payload_bytes=group.method.payload_bytes,
        sees=group.method.sees,
        clients_at_once=len(group.clients),
        seconds_per_client_step=statistics.median(seconds) / (len(group.clients) * task.steps),
        repeat_seconds=seconds,
        peak_memory_bytes=torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_memory_bytes(),
        resident_before_bytes=before,
        device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        num_threads=num_threads,
    )


def ratios(measured: Mapping[str, Measured]) -> dict[str, dict[str, float]]:
    """How many times less time per client step, and less memory, each method takes than the last one.

    Memory of the whole process, and memory on top of the libraries, which are the same for all methods.
    """
    *compared, last = measured.values()
    return {
        name: {
            "time": last.seconds_per_client_step / method.seconds_per_client_step,
            "memory": last.peak_memory_bytes / method.peak_memory_bytes,
            "memory_above_libraries": above_libraries(last) / above_libraries(method),
        }
        for name, method in zip(measured, compared, strict=False)
    }


def above_libraries(measured: Measured) -> int:
    """Bytes of the model and the method alone."""
    return measured.peak_memory_bytes - measured.resident_before_bytes


def model_config(name: str, weights_file: str | None = None) -> ModelConfig:
    """A model with random weights, or with those in `weights_file`; the bundled model has its own weights."""
    return ModelConfig(name=name, pretrained=None if name == weights.BUNDLED else weights_file or "none")


@contextmanager
def weights_file(model: str) -> Iterator[str | None]:
    """Random weights of `model` in a temporary file; None for the bundled model, which has its own file.

    A run maps its weights from a file, and only the pages that it touches count as its memory.
    """
    if model == weights.BUNDLED:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="flora-hpc-bench-") as folder:
        file = str(Path(folder) / "random.safetensors")
        clip_model, _ = load_open_clip(model_config(model), 0, torch.device("cpu"))
        try:
            save_file({name: tensor.clone() for name, tensor in clip_model.state_dict().items()}, file)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"random weights cannot be written to {folder}: {reason(error)}; set TMPDIR to a folder with room"
            ) from None
        del clip_model
        yield file


def resident_bytes() -> int:
    """The resident set of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def processor() -> str:
    """The processor's name, as far as Linux knows it."""
    match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return match[1] if match else os.uname().machine


def main() -> None:
    """The process of one method: reads a Task as JSON, writes a Measured or an error that the user can cure."""
    answer: dict[str, object]
    try:
        answer = asdict(measure(Task(**json.loads(sys.argv[1]))))
    except KeyboardInterrupt:
        sys.exit(130)
    except UserError as error:
        answer = {"error": str(error)}
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)):
            raise
        answer = {"error": f"memory ran out; {LOWER}"}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
