"""The workload of a measurement: a group of clients, set up as in a run, on random images."""

import re
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from flora_hpc import building, embed, experiment, groupsize, plugins, seeds, trainer
from flora_hpc.clip.library import open_clip
from flora_hpc.clip.load import Clip
from flora_hpc.comm import devices
from flora_hpc.comm.backends.serial import Serial
from flora_hpc.comm.launch import Launch
from flora_hpc.config import ClientConfig, Config, FeaturesConfig
from flora_hpc.data import features
from flora_hpc.data.holdings import Holdings, Partitioner, Population
from flora_hpc.data.images import Dataset, Images, Ints, Raw
from flora_hpc.data.inputs import Inputs
from flora_hpc.errors import UserError
from flora_hpc.methods._method import Method
from flora_hpc.setup import Site, find_site

COHORT = 10_000  # clients of a round, enough for a group of the largest size


@dataclass(frozen=True)
class Group:
    """Clients that train together, each on one batch of examples, and the inputs of their method."""

    method: Method
    clients: Ints  # (num_clients,) int64
    holdings: Holdings
    images: Images
    captions: tuple[str, ...]
    names: tuple[str, ...]  # of the classes
    inputs: Inputs
    labels: torch.Tensor  # (num_images,) int64, on the device

    def batches(self, batch_size: int, steps: int, number: int) -> trainer.Batches:
        """`steps` epochs of one batch for each client."""
        return trainer.make_batches(self.clients, self.holdings, ClientConfig(batch_size=batch_size, epochs=steps), 0, number)

    def train(self, batch_size: int, steps: int, number: int = 0, during: AbstractContextManager[Any] | None = None) -> float:
        """Train every client for `steps` steps, as a run does, inside `during`; returns the seconds."""
        device = self.labels.device
        adapter = self.method.pack(self.method.init(seeds.generator(0, "initial adapter"))).to(device)
        mask = self.method.portions.mask(self.clients).to(device) if self.method.portions else None
        batches, config = self.batches(batch_size, steps, number), ClientConfig(batch_size=batch_size, epochs=steps)
        with during or nullcontext():
            start = clock(device)
            trainer.train(trainer.Task(self.method, self.inputs, self.labels, config), trainer.Start(adapter, mask), batches)
            return clock(device) - start


def clock(device: torch.device) -> float:
    """The time in seconds, after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def set_up(
    clip: Clip,
    method: str,
    classes: int,
    batch_size: int,
    clients: int | None,
    device: torch.device,
    num_threads: int,
    precision: str = "fp32",
) -> Group:
    """Build `method` and its inputs for a group of `clients`, or of as many as in a run with a large cohort.

    `clip` is on `device`; its frozen layers are converted to `precision` as in a run.
    """
    names = class_names(classes)
    num_images = max(batch_size, features.BLOCK)  # a whole block, so that features take as much memory as in a run
    labels = seeds.generator(0, "bench labels").integers(classes, size=num_images)
    images = Images(labels, random_images, lambda row: f"random image {row}")
    rows = np.arange(num_images)
    captions = tuple(f"a photo of a {name}." for name in names)
    dataset = Dataset("random", names, names, captions, images, rows, rows[:0])

    def draw(num_drawn: int, rng: np.random.Generator) -> Ints:
        return rng.permutation(num_images)[:num_drawn]

    holdings = Population(max(COHORT, clients or 0), batch_size, 0, Partitioner(draw, draw), rows)
    options = plugins.member("methods", method).Options(name=method)
    built_method = building.build_method(options, precision, dataset, clip, holdings)
    load = groupsize.load(clip, built_method, ClientConfig(batch_size=batch_size), classes)
    client_ids = np.arange(clients or groupsize.choose(COHORT, load, devices.room(device)).clients)
    work = embed.Work(clip, FeaturesConfig(store="none"), Serial(), device, num_threads)
    inputs = experiment.inputs_of(dataset, built_method, work, experiment.embed_for(dataset, built_method, work))
    return Group(built_method, client_ids, holdings, images, captions, names, inputs, torch.from_numpy(labels).to(device))


def built_alone(config: Config, launch: Launch) -> tuple[experiment.Experiment, Site]:
    """An experiment and its site in one process, built as a run builds them. Raises UserError like a run."""
    site = find_site(config, Serial(), launch)
    built = experiment.build(config, site.device, site.room)
    return experiment.with_inputs(built, site, lambda done, total: None), site


def class_names(count: int) -> tuple[str, ...]:
    """The commonest words of four letters and more in CLIP's vocabulary. Raises UserError when there are fewer than `count`."""
    words = [token.removesuffix("</w>") for token in open_clip.SimpleTokenizer().encoder if re.fullmatch(r"[a-z]{4,}</w>", token)]
    if count > len(words):
        raise UserError(f"--classes: there are names for at most {len(words):,} classes, not for {count:,}; lower it")
    return tuple(words[:count])


def random_images(rows: Sequence[int]) -> list[Raw]:
    """Images of 8 x 8 squares of random colours on 256 x 256 pixels, always the same for a row.

    An image tower maps all plain noise to similar features; gradients would then be small differences of large numbers.
    """
    colours = [seeds.generator(0, "bench image", row).integers(0, 256, (8, 8, 3), np.uint8) for row in rows]
    return [each.repeat(32, 0).repeat(32, 1) for each in colours]
