"""Forecast the points of a study: what a point costs, and whether it fits in memory."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from rich.filesize import decimal

from flora_hpc import forecast
from flora_hpc.comm import devices
from flora_hpc.comm.communicator import Communicator
from flora_hpc.comm.launch import Launch
from flora_hpc.errors import UserError, reason
from flora_hpc.shared import Shared
from flora_hpc.studies.points import Planned

SIZE, REPEATS = 768, 5  # of the matrix product that gives a core's rate


@dataclass(frozen=True)
class Cost:
    """The forecast of one point; zeros where `problem` says why there is none."""

    flops: int = 0  # floating-point operations of all rounds
    memory_bytes: int = 0  # of a rank
    num_clients: int = 0  # of a round
    problem: str = ""
    is_bug: bool = False  # whether an error that nobody foresaw is the problem, such as one in the user's own part


def forecast_all(planned: Sequence[Planned], comm: Communicator, num_ranks: int) -> list[Cost]:
    """The cost of each point when `num_ranks` ranks play it, on every rank of `comm`. Each rank forecasts a part.

    Points that differ in their seed alone have one forecast.
    """
    settings = [json.dumps([item.point.setting, item.num_ranks], sort_keys=True) for item in planned]
    first = {text: number for number, text in reversed(list(enumerate(settings)))}
    shared, own = Shared(), {}
    for text in sorted(first, key=lambda text: first[text])[comm.rank :: comm.size]:
        item = planned[first[text]]
        own[text] = asdict(_forecast(item, item.num_ranks or num_ranks, shared))
    costs = {text: cost for part in comm.allgather(json.dumps(own).encode()) for text, cost in json.loads(part).items()}
    return [Cost(**costs[text]) for text in settings]


def _forecast(item: Planned, num_ranks: int, shared: Shared) -> Cost:
    gpus = torch.cuda.device_count() if item.config.comm.device != "cpu" else 0
    try:
        plan = forecast.plan(item.config, num_ranks, gpus, shared)
    except UserError as error:
        return Cost(problem=" ".join(str(error).split()))
    except Exception as error:
        return Cost(problem=f"{type(error).__name__}: {reason(error)}", is_bug=True)
    memory = sum(plan.memory_bytes.values())
    return Cost(max(1, item.config.rounds) * plan.round_flops, memory, len(plan.clients))


def memory_of_rank(launch: Launch) -> int:
    """Bytes of this node's memory for each of its ranks."""
    return devices.memory_per_core() * (os.cpu_count() or 1) // launch.local_size


def too_large(cost: Cost, launch: Launch) -> str:
    """Why a point does not fit in the memory of this rank; empty where it fits."""
    room = memory_of_rank(launch)
    if cost.memory_bytes <= room:
        return ""
    whose = f"each of the node's {launch.local_size} ranks has" if launch.local_size > 1 else "this machine has"
    return (
        f"does not fit in memory: a rank takes about {decimal(cost.memory_bytes)}, and {whose} {decimal(room)}; "
        "start fewer ranks on a node, or lower client.group_size or client.batch_size"
    )


def core_rate() -> float:
    """Floating-point operations a second of a matrix product on this process's threads: measured, the median of some."""
    one, other, seconds = torch.rand(SIZE, SIZE), torch.rand(SIZE, SIZE), []
    for _ in range(REPEATS):
        started = time.perf_counter()
        torch.mm(one, other)
        seconds.append(time.perf_counter() - started)
    return 2 * SIZE**3 / sorted(seconds)[REPEATS // 2]
