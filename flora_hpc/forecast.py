"""Forecast a run from shapes alone: clients of each rank, bytes on the wire, memory. No weights are read, no features made."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import torch
from rich.filesize import decimal

from flora_hpc import building, experiment, firststep, footprint
from flora_hpc.clip import precision, weights
from flora_hpc.clip.load import Clip
from flora_hpc.clip.towers import images_at_once, num_image_positions
from flora_hpc.comm import devices
from flora_hpc.config import Config
from flora_hpc.data.images import Dataset, Ints
from flora_hpc.groupsize import GroupSize, tower
from flora_hpc.methods._method import Method
from flora_hpc.records.views import count
from flora_hpc.round import groups_of_ranks
from flora_hpc.rows import Exchange
from flora_hpc.setup import FirstTraffic, Setup
from flora_hpc.shared import Shared
from flora_hpc.stacks import Sizes

LIBRARY_BYTES = 65 * 10**7  # Python, PyTorch and open_clip on a CPU, measured after a product
UNSEEN_GPU_BYTES = 16 * 10**9  # assumed memory of a GPU of another machine
ASSIGNMENTS = {
    "static": "static: {}s go to ranks in turn",
    "balanced": "balanced: the costliest {} first, each to the rank with the least so far",
    "dynamic": "dynamic: an idle rank takes the costliest group that is left; below, what ranks of the same speed take",
}


@dataclass(frozen=True)
class Plan:
    """Forecast of round 1 of a run on `num_ranks` ranks, and of the memory of a rank.

    `groups` has the groups of clients of each rank. Bytes are per round: all clients together send `uplink_bytes` and receive
    `downlink_bytes`; each rank gives `allreduce_bytes` to the exact sums, `product_bytes`
    of them for products of low-rank adapters; ranks send each other `allgather_bytes` of a Jacobian, `exchange` of updates
    where a rule compares them, and `factors` of low-rank adapters where their products are summed by stacks. `first_traffic` is
    sent once, before round 0.
    `num_server_images` are training images that only the server has.
    `remembered` is what clients remember from one round to the next, if they remember anything. `memory_bytes` maps each use of a
    rank's memory to its bytes.
    """

    config: Config
    num_ranks: int
    dataset: Dataset = field(repr=False)
    model: str
    model_numbers: int  # number of all weights
    weights: str  # their source
    num_registered: int
    clients: Ints = field(repr=False)  # (num_clients,) of round 1
    num_examples: Ints = field(repr=False)  # (num_clients,) of each client
    num_steps: Ints = field(repr=False)  # (num_clients,) of each client
    groups: list[list[Ints]] = field(repr=False)
    without_work: tuple[str, ...]  # a sentence where ranks have none
    bound: str  # the limit that decides the size of a group
    group_bytes: int  # of the largest group
    room: devices.Room  # memory for a group
    first_step: str
    assignment: str
    how: str
    algorithm: str  # and the parts that the configuration names instead of its own
    merged: str  # the form in which merged weights go down; empty for none
    period: int  # rounds after which the sent tensors are the same again
    drops_ranks: bool  # whether clients may drop ranks, so that bytes are upper bounds
    num_params: int
    num_private: int  # trained numbers that stay with each client
    payload_bytes: int  # of an adapter
    client_uplink_bytes: Ints = field(repr=False)  # (num_clients,) sent by each client
    client_downlink_bytes: Ints = field(repr=False)  # (num_clients,) received by each client
    uplink_bytes: int
    downlink_bytes: int
    allreduce_bytes: int
    product_bytes: int
    first_traffic: FirstTraffic | None
    allgather_bytes: int
    exchange: Exchange | None
    factors: Sizes | None
    num_server_images: int
    remembered: footprint.Remembered | None
    memory_bytes: Mapping[str, int]
    round_flops: int  # about how many floating-point operations the clients need

    def __repr__(self) -> str:
        clients, memory = f"{len(self.clients):,} of {self.num_registered:,} clients", decimal(sum(self.memory_bytes.values()))
        return f"Plan({clients} on {self.num_ranks} ranks, {decimal(self.uplink_bytes)} up in a round, {memory} a rank)"

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that a user must read before the run."""
        largest = max(len(group) for groups in self.groups for group in groups)
        too_large = [_too_large(self, largest)] if self.group_bytes > self.room.num_bytes else []
        return (*self.dataset.warnings, *self.without_work, *too_large)


def plan(
    config: Config, num_ranks: int = 1, gpus_per_node: int = 0, shared: Shared | None = None, ranks_per_node: int | None = None
) -> Plan:
    """Plan a run of `config` on `num_ranks` ranks, `ranks_per_node` of them on a node, by default all.

    Plans with the same `shared` object share data, and a model without values. Raises UserError for mistakes that a run refuses,
    as far as shapes show them.
    """
    if not gpus_per_node:  # the abilities of another machine's GPUs are unknown
        precision.prepare_device(config.model.precision, torch.device("cpu"))
        precision.prepare_device(config.features.compute, torch.device("cpu"), "features.compute")
    room = room_for(gpus_per_node, ranks_per_node or num_ranks)
    built = experiment.build(config, torch.device("meta"), room, shared, num_ranks)
    dataset, setup, method = built.dataset, built.setup, built.setup.method
    clients = setup.schedule.clients(1)
    sizes, groups = setup.holdings.sizes(clients), groups_of_ranks(setup, num_ranks, 1)
    largest = max(len(group) for rank_groups in groups for group in rank_groups)
    choice, load = building.group_size(config, dataset, built.clip, method, setup.holdings, room, setup.federation)
    factors = footprint.factors(setup, groups)
    on_gpu = torch.device("cuda" if gpus_per_node else "cpu")
    traffic, remembered = footprint.traffic(setup, clients, 1), footprint.remembered(setup, groups, room.num_bytes)
    return Plan(
        config=config,
        num_ranks=num_ranks,
        dataset=dataset,
        model=built.clip.name,
        model_numbers=sum(p.numel() for p in built.clip.model.parameters()),
        weights=weights.what_is_checked(weights.find(config.model)),
        num_registered=setup.holdings.num_clients,
        clients=clients,
        num_examples=sizes,
        num_steps=-(-sizes // config.client.batch_size) * config.client.epochs,
        groups=groups,
        without_work=tuple(without_work(setup, sum(map(bool, groups)), num_ranks)),
        bound=_bound(choice, groups, config.cohort.assignment),
        group_bytes=load.of_group(largest),
        room=room,
        first_step=firststep.describe(method, setup.by_jacobian, setup.federation.num_private > 0),
        assignment=ASSIGNMENTS[config.cohort.assignment].format("group" if setup.grouping.fixed else "client"),
        how=method.how,
        algorithm=setup.federation.name,
        merged=setup.federation.merged.form,
        period=len(setup.federation.roles),
        drops_ranks=setup.federation.local.pruning is not None,
        num_params=method.num_trained,
        num_private=setup.federation.num_private,
        payload_bytes=method.payload_bytes,
        client_uplink_bytes=traffic.up,
        client_downlink_bytes=traffic.down,
        uplink_bytes=int(traffic.up.sum()),
        downlink_bytes=int(traffic.down.sum()),
        allreduce_bytes=traffic.allreduce,
        product_bytes=traffic.products,
        first_traffic=setup.first_traffic,
        allgather_bytes=firststep.sent_bytes(method, setup.by_jacobian, num_ranks),
        exchange=footprint.exchange(setup, num_ranks),
        factors=factors,
        num_server_images=len(setup.server),
        remembered=remembered,
        memory_bytes=_lasting(config, built.clip, setup, len(dataset.images))
        | ({"memories of clients": remembered.memory_bytes} if remembered else {})
        | ({"updates of clients": footprint.updates_bytes(setup, num_ranks)} if setup.federation.rule else {})
        | ({"factors of clients": factors.memory} if factors else {})
        | _peak(built.clip, setup, load.of_group(largest), traffic.allreduce, images_at_once(built.clip.model, on_gpu))
        | {"libraries": LIBRARY_BYTES},
        round_flops=_flops(config, built.clip, method, sizes),
    )


def without_work(setup: Setup, num_busy: int, num_ranks: int) -> list[str]:
    """A sentence about ranks without work in a round, where only `num_busy` of `num_ranks` have some; none where all have."""
    if num_busy == num_ranks:
        return []
    clients = count(setup.num_participants, "client")
    group_note, advice = "", ""
    if setup.grouping.fixed:
        group_note = f", which make {count(num_busy, 'group')} of up to {setup.grouping.most}"
        most = setup.num_participants // num_ranks
        advice = f", or set client.group_size: {most}" if 0 < most < setup.grouping.most else ""
    return [
        f"{num_ranks - num_busy:,} of {num_ranks:,} ranks have no work, since a round has {clients}{group_note}; "
        f"ask for fewer ranks{advice}"
    ]


def _flops(config: Config, clip: Clip, method: Method, sizes: Ints) -> int:
    """About how many operations the local steps of clients with `sizes` examples need: products in the trained towers.

    A block of width w has 12 w^2 weights, each of which takes 2 operations forwards and 2 backwards at every position.
    """
    text, image = tower(getattr(clip.model, "text", clip.model)), tower(clip.model.visual)
    steps = int((-(-sizes // config.client.batch_size)).sum()) * config.client.epochs
    examples = int(sizes.sum()) * config.client.epochs
    costs = method.costs
    text_positions = steps * costs.text_positions + examples * costs.caption_positions
    positions = ((text, text_positions), (image, examples * costs.image_positions))
    towers = sum(48 * tower.width**2 * tower.blocks * number for tower, number in positions)
    return towers + 4 * steps * method.num_params


def _bound(choice: GroupSize, groups: list[list[Ints]], assignment: str) -> str:
    """The limit that decides the size of a group, where each rank trains its `groups`."""
    if assignment == "dynamic" and max(len(group) for of_rank in groups for group in of_rank) < choice.clients:
        return "several for each rank, so that an idle one finds work"
    one_each = len(groups) > 1 and all(len(of_rank) <= 1 for of_rank in groups)
    return "each rank trains its clients in one" if one_each else choice.bound


def room_for(gpus: int, ranks: int) -> devices.Room:
    """Memory for a group: of this machine, or of a GPU like this machine's GPUs, which some of `ranks` may share."""
    sharing = -(-ranks // gpus) if gpus else 1
    if gpus and not torch.cuda.is_available():
        return devices.Room(UNSEEN_GPU_BYTES // 2 // sharing, gpu=True)
    return devices.room(torch.device("cuda" if gpus else "cpu"), sharing)


def _lasting(config: Config, clip: Clip, setup: Setup, num_images: int) -> dict[str, int]:
    """About how many bytes a rank needs all the time, besides memories of clients."""
    method = setup.method
    lasting = {"weights": sum(p.numel() * p.element_size() for p in clip.model.parameters())}
    if method.sees == "features":
        values = method.unpack(torch.empty(1, method.num_params, device="meta"))
        number_bytes = 2 if config.features.precision == "bf16" else 4
        copies = 1 if setup.federation.trigger is None else 2  # with a backdoor, triggered images have features, too
        lasting["features"] = copies * number_bytes * method.classes(values, None).shape[-1] * num_images
    if setup.by_jacobian:
        lasting["Jacobian"] = firststep.num_bytes(method, True)
    if setup.federation.combine.merged_ranks is not None:  # the matrices, and weights beside the former ones
        lasting["merged weights"] = 2 * 4 * sum(prod(layer.shape) for layer in method.layers)
    return lasting


def _peak(clip: Clip, setup: Setup, group_bytes: int, sum_bytes: int, at_once: int) -> dict[str, int]:
    """About how many more bytes a rank's largest peak needs; peaks do not overlap. `at_once` images are encoded in a batch."""
    model, method = clip.model, setup.method
    # beside a group: the adapter, and exact sums of 16 bytes a number with their means of 4 bytes
    peaks = {"training a group": group_bytes + method.payload_bytes + sum_bytes + sum_bytes // 4}
    if method.sees == "features":
        size = model.visual.image_size
        pixels = 3 * (size[0] * size[1] if isinstance(size, tuple) else size * size)
        # pixels of the images that are encoded at once and of the images that are read ahead, and activations of one layer
        peaks["encoding images"] = 4 * at_once * (3 * pixels + 10 * num_image_positions(model) * tower(model.visual).width)
    if setup.by_jacobian:  # while ranks exchange its rows, the rows are in memory twice
        peaks["exchanging a Jacobian"] = firststep.num_bytes(method, True)
    if method.first_gradient is not None:  # exact sums, and a gradient with its copies
        peaks["the first gradient"] = (16 + 4 * 4) * method.first_gradient.probe.num_params
    largest = max(peaks, key=lambda name: peaks[name])
    return {largest: peaks[largest]}


def _too_large(plan: Plan, clients: int) -> str:
    """A warning that a group of `clients` needs more memory than there is."""
    whose = "of its part of a GPU's memory" if plan.room.gpu else "of this machine's memory for each core"
    cure = "lower client.group_size or" if clients > 1 else "put fewer ranks on a node, or lower"
    half = f"half {whose} is {decimal(plan.room.num_bytes)}"
    return f"a group takes about {decimal(plan.group_bytes)}, and {half}; {cure} client.batch_size"
