"""A round's allreduce against the library's own call on the same bytes, in turn, under any launcher."""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from flora_hpc.bench.methods import processor
from flora_hpc.comm import communicator, devices
from flora_hpc.comm.backends import mpi
from flora_hpc.comm.communicator import Communicator
from flora_hpc.comm.launch import Launch
from flora_hpc.comm.meter import Meter
from flora_hpc.config import CommConfig
from flora_hpc.versions import versions

MOVED = 2**27  # total bytes of the repeats of one size, by default
FEWEST, MOST = 10, 200  # repeats by default
WARM_UP = 3  # untimed calls of each side


def measure(
    comm: Communicator, me: Launch, config: CommConfig, sizes: Sequence[int], repeats: int | None, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Time both calls for each of `sizes` (bytes, whole int64 numbers). All ranks call this and get the same result."""
    facts, device = where(comm, me, config)
    results = []
    for num_bytes in sizes:
        num_repeats = repeats or min(MOST, max(FEWEST, MOVED // num_bytes))
        progress(f"{num_bytes:,} bytes, {num_repeats} times")
        results.append(measure_size(comm, me, device, num_bytes, num_repeats))
    return facts | {"sizes": results}


def where(comm: Communicator, me: Launch, config: CommConfig) -> tuple[dict[str, Any], torch.device]:
    """What every measurement of collectives says about ranks and machine, and this rank's device. All ranks call this."""
    device = communicator.together(comm, lambda: devices.pick(me, config))
    places = devices.places(comm, me, device, devices.share_cores(comm, me))
    facts = {
        "backend": comm.name,
        "launcher": me.launcher,
        "world_size": comm.size,
        "num_hosts": len({place.host for place in places}),
        "device": places[0].device,
        "num_threads": places[0].num_threads,
        "processor": processor(),
        "versions": versions(),
    }
    return facts, device


def measure_size(comm: Communicator, me: Launch, device: torch.device, num_bytes: int, repeats: int) -> dict[str, Any]:
    """Time both calls in turn, each on its own buffer: the slowest rank of each repeat, the median of the repeats."""
    buffer, meter = np.zeros(num_bytes // 8, np.int64), Meter(comm)
    raw = raw_call(comm, me, device, num_bytes)
    seconds: dict[str, list[float]] = {"ours": [], "raw": []}
    for _ in range(WARM_UP + repeats):
        comm.barrier()
        seconds["ours"].append(timed(lambda: meter.allreduce(buffer)))
        comm.barrier()
        seconds["raw"].append(timed(raw) if raw else 0.0)
    gathered = [json.loads(text) for text in comm.allgather(json.dumps(seconds).encode())]
    slowest = {name: [max(each) for each in zip(*(rank[name] for rank in gathered), strict=True)][WARM_UP:] for name in seconds}
    ours, library = statistics.median(slowest["ours"]), statistics.median(slowest["raw"])
    return {
        "bytes": num_bytes,
        "repeats": repeats,
        "ours_seconds": ours,
        "raw_seconds": library if raw else None,
        "ratio": ours / library if raw else None,
        "difference_seconds": ours - library,
        "ours_bus_bytes_per_second": bus_rate(num_bytes, comm.size, ours),
        "raw_bus_bytes_per_second": bus_rate(num_bytes, comm.size, library),
        "ours_quartiles": np.quantile(slowest["ours"], [0.25, 0.75]).tolist(),
        "raw_quartiles": np.quantile(slowest["raw"], [0.25, 0.75]).tolist(),
    }


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def raw_call(comm: Communicator, me: Launch, device: torch.device, num_bytes: int) -> Callable[[], object] | None:
    """The sum over ranks by the library's own call; None without a library, on one rank."""
    if comm.name == "mpi":
        library = mpi.load(me)
        world, buffer = library.COMM_WORLD, np.zeros(num_bytes // 8, np.int64)
        return lambda: world.Allreduce(library.IN_PLACE, buffer, op=library.SUM)
    if comm.name in ("gloo", "nccl"):
        tensor = torch.zeros(num_bytes // 8, dtype=torch.int64, device=device if comm.name == "nccl" else "cpu")
        return lambda: all_reduce(tensor)
    return None


def all_reduce(tensor: torch.Tensor) -> None:
    """torch.distributed's allreduce, until it is complete."""
    dist.all_reduce(tensor)
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


def bus_rate(num_bytes: int, num_ranks: int, seconds: float) -> float | None:
    """Bytes per second that each rank must at least move: 2 (n - 1) / n times the buffer, as nccl-tests counts."""
    return 2 * (num_ranks - 1) / num_ranks * num_bytes / seconds if num_ranks > 1 and seconds > 0 else None
