"""The inputs of every round: the `Setup`, the same on all ranks and in all rounds, and the `Site` of this rank."""

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch

from flora_hpc import trainer
from flora_hpc.clip import precision, weights
from flora_hpc.cohort import Grouping, Schedule, whole_cohort
from flora_hpc.comm import devices
from flora_hpc.comm.communicator import Communicator, together
from flora_hpc.comm.counters import Counters
from flora_hpc.comm.launch import Launch
from flora_hpc.comm.meter import Meter
from flora_hpc.comm.stop import Stop
from flora_hpc.config import ClientConfig, CohortConfig, Config, EvaluateConfig
from flora_hpc.data.holdings import Holdings
from flora_hpc.data.images import Ints
from flora_hpc.data.inputs import Features, Inputs
from flora_hpc.federation import Federation
from flora_hpc.methods._method import Method


@dataclass(frozen=True)
class Setup:
    """Options, data and functions of all rounds."""

    seed: int
    rounds: int
    cohort: CohortConfig
    client: ClientConfig
    evaluate: EvaluateConfig
    method: Method
    federation: Federation
    holdings: Holdings
    grouping: Grouping
    num_classes: int  # captions that images are scored against
    by_jacobian: bool  # whether clients make their first step by a Jacobian; see `firststep`
    labels: torch.Tensor  # (num_images,) int64, on this rank's device; with a backdoor, then those of the images with its trigger
    test: torch.Tensor  # rows (num_test_images,) int64 of the images, on this rank's device
    server: Ints = field(default_factory=lambda: np.zeros(0, np.int64))  # rows (n,) of training images that only the server has
    validation: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))  # rows, as `test`; may be none
    backdoor: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))  # rows of triggered test images
    inputs: Inputs = field(default_factory=lambda: Features(torch.empty(0, 0)))  # features or pixels of all images
    most_client_rows: int | None = None  # clients of a round that have a row in run.h5, at most; None: all

    @property
    def padding_multiple(self) -> int:
        """Batches are padded to a multiple of this many examples; see `trainer.padding_multiple`."""
        return trainer.padding_multiple(self.method, self.client, self.holdings.largest)

    @property
    def task(self) -> trainer.Task:
        """Method, data and options of local training."""
        return trainer.Task(self.method, self.inputs, self.labels, self.client, self.federation.local)

    @property
    def schedule(self) -> Schedule:
        """Who takes part in which round."""
        return whole_cohort(self.cohort, self.holdings.num_clients, self.seed)

    @property
    def sums_products(self) -> bool:
        """Whether ranks add up the products B A of clients."""
        return self.evaluate.cross_term or self.federation.combine.replaces

    @property
    def num_participants(self) -> int:
        """Clients of a round."""
        return self.cohort.num_clients(self.holdings.num_clients)

    @property
    def first_clients(self) -> Ints:
        """The clients (n,) that compute the first gradient: places of round 1 at equal distances; none where no method needs it."""
        first = self.method.first_gradient
        num_clients = 0 if first is None else min(first.num_clients, self.num_participants)
        return self.schedule.finder(1)(np.arange(num_clients) * self.num_participants // max(1, num_clients))

    @property
    def first_traffic(self) -> "FirstTraffic | None":
        """What a federation would send before round 0; None where the initial adapter needs no gradient."""
        method, first = self.method, self.method.first_gradient
        if first is None:
            return None
        constant_bytes = 4 * (method.num_params - method.num_trained)
        return FirstTraffic(len(self.first_clients), 4 * first.probe.num_params, self.holdings.num_clients, constant_bytes)

    def is_tested(self, number: int) -> bool:
        """Whether the adapter after round `number` is tested."""
        return number % self.evaluate.every == 0 or number == self.rounds


class FirstTraffic(NamedTuple):
    """Bytes before round 0: some clients send a gradient, and all registered clients receive what stays as it is."""

    num_senders: int
    sent_bytes: int  # by each
    num_receivers: int
    received_bytes: int  # by each

    @property
    def uplink_bytes(self) -> int:
        """Of all clients."""
        return self.num_senders * self.sent_bytes

    @property
    def downlink_bytes(self) -> int:
        """Of all clients."""
        return self.num_receivers * self.received_bytes


class GroupProgress(Protocol):
    """Report progress: `done` of this rank's `num_local` clients are trained, in a round of `num_participants`."""

    def __call__(self, done: int, num_local: int, num_participants: int, /) -> None: ...


@dataclass(frozen=True)
class Site:
    """This rank's communicator, device, memory, and the means to interrupt it or report its progress."""

    comm: Meter
    launch: Launch = field(default_factory=Launch)
    first_on_node: bool = True  # whether this rank is the first one of the run on its node
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    num_threads: int = 1
    room: devices.Room = field(default_factory=lambda: devices.Room(0, gpu=False))  # memory that every rank has for a group
    stop: Stop = field(default_factory=Stop)
    counters: Counters = field(default_factory=Counters)  # shared by all ranks, for work that goes to idle ranks
    trained: GroupProgress = lambda done, num_local, num_participants: None  # called after each group


def find_site(
    config: Config, comm: Communicator, launch: Launch, stop: Stop | None = None, neighbours: devices.Neighbours | None = None
) -> Site:
    """Find this rank's device and cores. Rank 0 fetches the weights while the other ranks wait; they find them in the cache.

    `neighbours` are given where `comm` is only a part of the job: its other ranks may share cores and GPUs with this rank.
    Raises UserError, on every rank, for a precision or backend that a device lacks.
    """
    device = together(comm, lambda: devices.pick(launch, config.comm))
    together(comm, lambda: precision.prepare_device(config.model.precision, device))
    together(comm, lambda: precision.prepare_device(config.features.compute, device, "features.compute"))
    num_threads, ranks_per_gpu = neighbours or devices.find_neighbours(comm, launch, device)
    room = devices.least_room(comm, devices.room(device, ranks_per_gpu))
    first_on_node = devices.is_first_on_node(comm)
    together(comm, lambda: weights.fetch(weights.find(config.model)) if comm.rank == 0 else None)
    meter = Meter(comm, idle=torch.cuda.synchronize if device.type == "cuda" else lambda: None)
    return Site(meter, launch, first_on_node, device, num_threads, room, stop or Stop())
