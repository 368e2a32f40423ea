"""Seconds per client step and peak memory of methods, each in a process of its own, so that its peak is its own.

What runs is what a run does with a group of clients: `prepare.see`, then `trainer.train`. Weights and images are random.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch

from flora_hpc import embed, groupsize, plugins, prepare, seeds, trainer
from flora_hpc.clip import weights
from flora_hpc.clip.load import load
from flora_hpc.comm import devices, launch
from flora_hpc.comm.backends.serial import Serial
from flora_hpc.config import ClientConfig, CommConfig, FeaturesConfig, ModelConfig
from flora_hpc.data import features
from flora_hpc.data.images import Dataset, Images, Ints, Raw
from flora_hpc.data.inputs import Inputs
from flora_hpc.data.shards import Partitioner, Population, Shards
from flora_hpc.errors import UserError
from flora_hpc.methods._method import Method, Setting
from flora_hpc.round import peak_memory_bytes

COHORT = 10_000  # clients of a round: so many that a group is as large as it gets
LOWER = "lower --batch-size, --classes or --clients, or leave the method out of --methods"


@dataclass(frozen=True)
class Task:
    """What is measured."""

    method: str
    model: str
    classes: int
    batch_size: int  # images of a client step
    clients: int | None  # trained in one batch of tensors; None: as many as in a run with a large cohort
    steps: int  # of each client, in a repeat
    repeats: int
    device: str  # auto, cpu or cuda


@dataclass(frozen=True)
class Measured:
    """What came out."""

    num_params: int  # trained numbers of a client
    payload_bytes: int
    sees: str  # features or pixels
    clients_at_once: int
    seconds_per_client_step: float  # median of the repeats
    repeat_seconds: list[float]  # a repeat is clients_at_once x steps client steps
    peak_memory_bytes: int  # largest resident set of the process; on a GPU, most memory that tensors held there
    resident_before_bytes: int  # the same before the model was built: what the libraries take
    device: str
    num_threads: int


def check(model: str, methods: Sequence[str], device: str) -> None:
    """Raise UserError for what does not exist, before minutes go into the rest."""
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
        raise UserError(f"bench starts its processes itself, but the launcher started {size} of it; start one")


def measure_alone(task: Task) -> Measured:
    """`measure` in a fresh process. Raises UserError for what that process refuses, and when it dies."""
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
    clip, names = load(model_config(task.model), 0, device), class_names(task.classes)
    num_images = max(task.batch_size, features.BLOCK)  # a whole block, so that features take the memory that they take in a run
    labels = seeds.generator(0, "bench labels").integers(task.classes, size=num_images)
    images = Images(labels, random_images, lambda row: f"random image {row}")
    everyone = np.arange(num_images)
    captions = tuple(f"a photo of a {name}." for name in names)
    dataset = Dataset("random", names, names, captions, images, everyone, everyone[:0])

    def draw(num_drawn: int, rng: np.random.Generator) -> Ints:
        return rng.permutation(num_images)[:num_drawn]

    shards = Population(max(COHORT, task.clients or 0), task.batch_size, 0, Partitioner(draw, draw), everyone)
    setting = Setting(clip, names, captions, shards, labels)
    member = plugins.member("methods", task.method)
    method: Method = member.build(member.Options(name=task.method), setting)
    each = groupsize.load(clip, method, ClientConfig(batch_size=task.batch_size), task.classes)
    clients = np.arange(task.clients or groupsize.choose(COHORT, each, devices.room(device)).clients)
    work = embed.Work(clip, FeaturesConfig(store="none"), comm, device, num_threads)
    inputs, _ = prepare.see(dataset, method, work)
    if method.sees == "features":
        del clip.model.visual  # as in a run
    seconds = train_repeatedly(task, method, clients, shards, inputs, torch.from_numpy(labels).to(device))
    return Measured(
        num_params=method.num_params,
        payload_bytes=method.payload_bytes,
        sees=method.sees,
        clients_at_once=len(clients),
        seconds_per_client_step=statistics.median(seconds) / (len(clients) * task.steps),
        repeat_seconds=seconds,
        peak_memory_bytes=torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_memory_bytes(),
        resident_before_bytes=before,
        device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        num_threads=num_threads,
    )


def train_repeatedly(
    task: Task, method: Method, clients: Ints, shards: Shards, inputs: Inputs, labels: torch.Tensor
) -> list[float]:
    """Seconds of each repeat of the training of a group, after a repeat of one step that warms up and does not count."""
    device = labels.device
    adapter = method.pack(method.init(seeds.generator(0, "initial adapter"))).to(device)
    held = method.holds(clients).to(device) if method.holds else None
    seconds = []
    for number in range(task.repeats + 1):
        config = ClientConfig(batch_size=task.batch_size, epochs=task.steps if number else 1)  # a client holds one batch
        batches = trainer.make_batches(clients, shards, config, 0, number)
        started = time.perf_counter()
        trainer.train(method, adapter, batches, inputs, labels, config, held)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def ratios(measured: Mapping[str, Measured]) -> dict[str, dict[str, float]]:
    """How many times less time per client step, and less memory, each method takes than the last one."""
    *others, last = measured.values()
    return {
        name: {
            "time": last.seconds_per_client_step / one.seconds_per_client_step,
            "memory": last.peak_memory_bytes / one.peak_memory_bytes,
        }
        for name, one in zip(measured, others, strict=False)
    }


def model_config(name: str) -> ModelConfig:
    """Random weights, but for the model that comes with its own."""
    return ModelConfig(name=name, pretrained=None if name == weights.BUNDLED else "none")


def class_names(count: int) -> tuple[str, ...]:
    """The commonest words of four letters and more in CLIP's vocabulary. Raises UserError when it has fewer than `count`."""
    words = [token.removesuffix("</w>") for token in open_clip.SimpleTokenizer().encoder if re.fullmatch(r"[a-z]{4,}</w>", token)]
    if count > len(words):
        raise UserError(f"--classes: there are names for at most {len(words):,} classes, not for {count:,}; lower it")
    return tuple(words[:count])


def random_images(rows: Sequence[int]) -> list[Raw]:
    """Noise of 256 x 256 pixels, the same for a row whenever it is read."""
    return [seeds.generator(0, "bench image", row).integers(0, 256, (256, 256, 3), np.uint8) for row in rows]


def resident_bytes() -> int:
    """The resident set of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def processor() -> str:
    """The processor's name, as far as Linux knows it."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else os.uname().machine


def main() -> None:
    """The process of one method: a Task as JSON in, a Measured out, or an error that the user can do something about."""
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
