"""What a round is played on: the `Setup`, which is the same on every rank and in every round, and this rank's `Site`."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from flora_hpc import trainer
from flora_hpc.aggregators._aggregator import Aggregator
from flora_hpc.clip import precision, weights
from flora_hpc.cohort import Grouping
from flora_hpc.comm import devices
from flora_hpc.comm.communicator import Communicator, together
from flora_hpc.comm.counters import Counters
from flora_hpc.comm.launch import Launch
from flora_hpc.comm.meter import Meter
from flora_hpc.comm.stop import Stop
from flora_hpc.config import ClientConfig, CohortConfig, Config, EvaluateConfig
from flora_hpc.data.holdings import Holdings
from flora_hpc.data.inputs import Features, Inputs
from flora_hpc.methods._method import Method


@dataclass(frozen=True)
class Setup:
    """What is played."""

    seed: int
    rounds: int
    cohort: CohortConfig
    client: ClientConfig
    evaluate: EvaluateConfig
    method: Method
    aggregator: Aggregator
    holdings: Holdings
    grouping: Grouping
    by_jacobian: bool  # whether clients make their first step by one; see `firststep`
    labels: torch.Tensor  # (num_images,) int64, on this rank's device
    test: torch.Tensor  # rows (num_test_images,) int64 of the images, on this rank's device
    inputs: Inputs = field(default_factory=lambda: Features(torch.empty(0, 0)))  # what the method sees of all images

    @property
    def width_unit(self) -> int:
        """Batches are filled up to a multiple of this many examples; see `trainer.width_unit`."""
        return trainer.width_unit(self.method, self.client, self.holdings.largest)

    @property
    def task(self) -> trainer.Task:
        """What clients train, on what, and how."""
        return trainer.Task(self.method, self.inputs, self.labels, self.client)

    @property
    def num_participants(self) -> int:
        """Clients of a round."""
        return self.cohort.num_clients(self.holdings.num_clients)

    def is_tested(self, number: int) -> bool:
        """Whether the adapter after round `number` is tested."""
        return number % self.evaluate.every == 0 or number == self.rounds


@dataclass(frozen=True)
class Site:
    """Where this rank works, whom it talks to, and who may interrupt it."""

    comm: Meter
    launch: Launch = field(default_factory=Launch)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    num_threads: int = 1
    room: devices.Room = field(default_factory=lambda: devices.Room(0, gpu=False))  # what all ranks have for a group of clients
    stop: Stop = field(default_factory=Stop)
    counters: Counters = field(default_factory=Counters)  # for work that goes to idle ranks
    trained: Callable[[int, int, int], None] = lambda done, mine, cohort: None  # called after each group; see Background.trained


def find_site(config: Config, comm: Communicator, launch: Launch, stop: Stop | None = None) -> Site:
    """Find this rank's device and cores, and have rank 0 fetch the weights while the others wait; they then find them in the cache.

    Raises UserError, on every rank, for what a device lacks.
    """
    device = together(comm, lambda: devices.pick(launch, config.comm))
    together(comm, lambda: precision.prepare_device(config.model.precision, device))
    together(comm, lambda: precision.prepare_device(config.features.compute, device, "features.compute"))
    room = devices.least_room(comm, devices.room(device, devices.sharing(comm, device)))
    num_threads = devices.share_cores(comm, launch)
    together(comm, lambda: weights.fetch(weights.find(config.model)) if comm.rank == 0 else None)
    meter = Meter(comm, idle=torch.cuda.synchronize if device.type == "cuda" else lambda: None)
    return Site(meter, launch, device, num_threads, room, stop or Stop())
