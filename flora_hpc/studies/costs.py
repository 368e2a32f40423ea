"""Forecast the points of a study: what a point costs, and whether it fits in memory."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from rich.filesize import decimal

from flora_hpc import forecast
from flora_hpc.comm import cores, devices
from flora_hpc.comm.communicator import Communicator
from flora_hpc.errors import UserError, reason
from flora_hpc.records.study import one_line
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
    unfit: str = ""  # why it does not fit in memory


def forecast_all(planned: Sequence[Planned], comm: Communicator, ranks_per_run: int, room: int | None = None) -> list[Cost]:
    """The cost of each point, on every rank of `comm`. Each rank forecasts a part of the settings; seeds do not matter.

    A rank has `room` bytes of memory; None where that is not known.
    """
    settings = [json.dumps([item.point.setting, item.num_ranks], sort_keys=True) for item in planned]
    first = {text: number for number, text in reversed(list(enumerate(settings)))}
    shared, own_costs = Shared(), {}
    for text in sorted(first, key=lambda text: first[text])[comm.rank :: comm.size]:
        item = planned[first[text]]
        own_costs[text] = asdict(_forecast(item, min(comm.size, item.num_ranks or ranks_per_run), room, shared))
    costs = {text: cost for part in comm.allgather(json.dumps(own_costs).encode()) for text, cost in json.loads(part).items()}
    return [Cost(**costs[text]) for text in settings]


def _forecast(item: Planned, num_ranks: int, room: int | None, shared: Shared) -> Cost:
    gpus = torch.cuda.device_count() if item.config.comm.device != "cpu" else 0
    try:
        plan = forecast.plan(item.config, num_ranks, gpus, shared)
    except UserError as error:
        return Cost(problem=one_line(str(error)))
    except Exception as error:
        return Cost(problem=one_line(f"{type(error).__name__}: {reason(error)}"), is_bug=True)
    memory, flops = sum(plan.memory_bytes.values()), max(1, item.config.rounds) * plan.round_flops
    return Cost(flops, memory, len(plan.clients), unfit=_too_large(memory, room) if room is not None else "")


def memory_of_rank(comm: Communicator) -> int:
    """Bytes of memory that every rank of `comm` has at least: that of its cores, shared by the ranks on these cores.

    All ranks call this.
    """
    place = json.dumps([cores.machine(), sorted(os.sched_getaffinity(0))]).encode()
    own_bytes = devices.memory_per_core() * len(os.sched_getaffinity(0)) // comm.allgather(place).count(place)
    return min(int(text) for text in comm.allgather(str(own_bytes).encode()))


def _too_large(memory: int, room: int) -> str:
    """Why a run does not fit in the memory of a rank; empty where it fits."""
    if memory <= room:
        return ""
    return (
        f"does not fit in memory: a rank takes about {decimal(memory)} and has {decimal(room)}; start fewer ranks on a node, "
        "or lower client.group_size or client.batch_size"
    )


def core_rate() -> float:
    """Floating-point operations a second of a matrix product on one thread: measured, the median of some."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    one, other, seconds = torch.rand(SIZE, SIZE), torch.rand(SIZE, SIZE), []
    for _ in range(REPEATS):
        started = time.perf_counter()
        torch.mm(one, other)
        seconds.append(time.perf_counter() - started)
    torch.set_num_threads(num_threads)
    return 2 * SIZE**3 / sorted(seconds)[REPEATS // 2]
