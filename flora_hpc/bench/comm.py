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

MOVED = 2**27  # bytes of a size's repeats together, by default
FEWEST, MOST = 10, 200  # repeats by default
WARM_UP = 3  # calls of either side before those that count


def measure(
    comm: Communicator, me: Launch, config: CommConfig, sizes: Sequence[int], repeats: int | None, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Time both calls for each of `sizes` (bytes, whole int64 numbers). All ranks call this and get the same result."""
    device = communicator.together(comm, lambda: devices.pick(me, config))
    places = devices.places(comm, me, device, devices.share_cores(comm, me))
    measured = []
    for num_bytes in sizes:
        chosen = repeats or min(MOST, max(FEWEST, MOVED // num_bytes))
        tell(f"{num_bytes:,} bytes, {chosen} times")
        measured.append(measure_size(comm, me, device, num_bytes, chosen))
    return {
        "backend": comm.name,
        "launcher": me.launcher,
        "world_size": comm.size,
        "num_hosts": len({place.host for place in places}),
        "device": places[0].device,
        "num_threads": places[0].num_threads,
        "processor": processor(),
        "versions": versions(),
        "sizes": measured,
    }


def measure_size(comm: Communicator, me: Launch, device: torch.device, num_bytes: int, repeats: int) -> dict[str, Any]:
    """Both calls in turn on buffers of their own. Of each repeat the slowest rank counts, of the repeats the median."""
    buffer, meter = np.zeros(num_bytes // 8, np.int64), Meter(comm)
    raw = raw_call(comm, me, device, num_bytes)
    mine: dict[str, list[float]] = {"ours": [], "raw": []}
    for _ in range(WARM_UP + repeats):
        comm.barrier()
        mine["ours"].append(timed(lambda: meter.allreduce(buffer)))
        comm.barrier()
        mine["raw"].append(timed(raw) if raw else 0.0)
    everyone = [json.loads(text) for text in comm.allgather(json.dumps(mine).encode())]
    slowest = {name: [max(each) for each in zip(*(rank[name] for rank in everyone), strict=True)][WARM_UP:] for name in mine}
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
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def raw_call(comm: Communicator, me: Launch, device: torch.device, num_bytes: int) -> Callable[[], object] | None:
    """The sum over ranks as one writes it with the library alone; None where there is one rank and no library."""
    if comm.name == "mpi":
        library = mpi.load(me)
        world, buffer = library.COMM_WORLD, np.zeros(num_bytes // 8, np.int64)
        return lambda: world.Allreduce(library.IN_PLACE, buffer, op=library.SUM)
    if comm.name in ("gloo", "nccl"):
        tensor = torch.zeros(num_bytes // 8, dtype=torch.int64, device=device if comm.name == "nccl" else "cpu")
        return lambda: all_reduce(tensor)
    return None


def all_reduce(tensor: torch.Tensor) -> None:
    """torch.distributed's, until it is done."""
    dist.all_reduce(tensor)
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


def bus_rate(num_bytes: int, num_ranks: int, seconds: float) -> float | None:
    """Bytes per second that each rank must at least move: 2 (n - 1) / n times the buffer, as nccl-tests counts."""
    return 2 * (num_ranks - 1) / num_ranks * num_bytes / seconds if num_ranks > 1 and seconds > 0 else None
