"""Measure a class on parts of the world of 1, 2, 4, ... units. All parts of a size play at once, so that no node is idle."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from flora_hpc import experiment, forecast, round
from flora_hpc.bench import links, quiet
from flora_hpc.bench.cluster import curve, flip, parts, surround, verdict
from flora_hpc.bench.cluster.classes import VERSION, Work
from flora_hpc.bench.cluster.parts import Units
from flora_hpc.bench.cluster.play import Played, Tools, play, set_up
from flora_hpc.bench.cluster.verdict import Plays
from flora_hpc.comm import devices
from flora_hpc.comm.communicator import AgreedError, Communicator, together
from flora_hpc.comm.launch import Launch
from flora_hpc.config import Config
from flora_hpc.errors import UserError
from flora_hpc.records.views import count

RESULT_SCHEMA = 1
GRACE_SECONDS = 5.0  # in which the first rank of a part says what went wrong there, and ends the job
MOST_BYTES = 2**26  # of a link's measurement: full fine-tuning sends gigabytes, and its rounds show them
Say = Callable[[str], None]


@dataclass(frozen=True)
class Bench:
    """What all plays of the benchmark need, on one rank."""

    work: Work
    world: Communicator
    patient: Communicator  # the same ranks: parts of a size do not end together
    units: Units
    tools: Tools
    say: Say

    def size(self, units: int, clients: int, rounds: int, out: Path | None = None) -> list[Played]:
        """Play on every part of `units` units at once; on rank 0 of the world, the results by part, and nothing elsewhere."""
        colour = self.units.colour(self.world.rank, units)
        comm = self.world.split(self.units.count if colour is None else colour)
        data = b""
        if colour is not None:
            members = self.units.members(colour, units)
            result = self.played(self.work.config(clients, rounds), comm, members, out)
            data = result.to_bytes() if result else b""
        texts = self.patient.gather(data)
        comm.close()
        return [Played.from_bytes(text) for text in texts or [] if text]

    def alone(self) -> list[str]:
        """Every rank plays one small round alone; on rank 0 of the world, the last digests by rank, empty where it failed."""
        comm = self.world.split(self.world.rank)
        result = self.played(self.work.config(self.work.probe_clients, 1), comm, [self.world.rank])
        whole = result is not None and len(result.digests) == 2
        texts = self.patient.gather(result.digests[-1].encode() if result and whole else b"")
        comm.close()
        return [text.decode() for text in texts or []]

    def played(self, config: Config, comm: Communicator, members: list[int], out: Path | None = None) -> Played | None:
        """Play on one part. A mistake that only this part knows ends the whole job: other parts would wait for it for ever."""
        try:
            return play(config, comm, members, self.tools, out)
        except AgreedError as error:
            if comm.size == self.world.size:
                raise
            time.sleep(GRACE_SECONDS if comm.rank else 0)
            raise UserError(str(error)) from None


def measure(
    work: Work, world: Communicator, launch: Launch, out: Path, say: Say = lambda text: None, load: float | None = None
) -> dict[str, Any] | None:
    """Measure the class, and judge the result: on rank 0 everything but the head, None elsewhere. All ranks of `world` call this.

    `out` gets run.h5 of the largest size. `load` is that of `quiet.load` before this process worked.
    Raises UserError, on every rank, for nodes that differ and for too little memory.
    """
    together(world, lambda: flip.flipped(world, world.rank))  # a wrong value is refused before anything is computed
    device = together(world, lambda: devices.pick(launch, work.comm))
    near = devices.find_neighbours(world, launch, device)
    units = Units(parts.spots(world, launch.local_rank, device, near, load))
    parts.refuse_unlike(units)
    sizes = parts.sizes(units.count, work.of.smallest)
    together(world, lambda: refuse_little_memory(work, units, sizes, device.type == "cuda") if world.rank == 0 else None)
    tools = Tools(launch, near)
    start_up = {"to_ranks_connected": surround.age_seconds()}
    say(f"class {work.of.name}: model and features")
    features_start = time.perf_counter()
    built, site = set_up(work.config(work.clients(sizes[-1]), 0), world, tools)
    start_up |= {"model_and_features": time.perf_counter() - features_start, "images_encoded": built.features.num_computed}
    patient = world.split(0, patient=True)
    bench = Bench(work, world, patient, units, tools, say)
    warnings = warned(bench, built, sizes)
    plays = play_all(bench, sizes, out)
    patient.close()  # not after an error of one rank: the others do not come
    facts = inputs(work, sizes[-1], built)
    between = measured_links(bench, facts["allreduce_bytes"])
    if world.rank:
        return None
    body = result_of(bench, plays, start_up, site.comm.name)
    return body | between | {"warnings": warnings + body["warnings"], "inputs": facts}


def warned(bench: Bench, built: experiment.Experiment, sizes: list[int]) -> list[str]:
    """Say what makes a result mean less: one rank alone, or ranks without work on the largest size. Returns the sentences."""
    num_ranks = sum(bench.units.colour(rank, sizes[-1]) == 0 for rank in range(bench.world.size))
    busy = sum(map(bool, round.groups_of_ranks(built.setup, num_ranks, 1)))
    sentences = [verdict.LONE] if bench.world.size == 1 else forecast.without_work(built.setup, busy, num_ranks)
    for text in sentences:
        bench.say(f"warning: {text}")
    return sentences


def measured_links(bench: Bench, num_bytes: int) -> dict[str, Any]:
    """Seconds of a round's allreduce and of a barrier, and rates between each pair of nodes. All ranks call this."""
    if bench.world.size == 1:
        return {"links": [], "pairs": None}
    rows = links.measure(bench.world, ["allreduce", "barrier"], [min(num_bytes, MOST_BYTES)], None, bench.say)
    return {"links": rows, "pairs": links.pairs(bench.world, None, bench.say) if bench.units.are_nodes else None}


def play_all(bench: Bench, sizes: list[int], out: Path) -> Plays:
    """Play the rounds that each rank plays alone, then each size, then the proof on each size."""
    work, what = bench.work, "node" if bench.units.are_nodes else "rank"
    bench.say(f"each rank alone: {count(work.probe_clients, 'client')}, one round")
    probes = bench.alone()
    rounds, proofs = {}, {}
    for size in sizes:
        clients, number = work.clients(size), bench.units.count // size
        where = count(size, what) + (f", {number} times at once" if number > 1 else "")
        bench.say(f"{count(clients, 'client')} on {where}: {work.rounds} rounds")
        rounds[size] = bench.size(size, clients, work.rounds, out if size == sizes[-1] else None)
        proofs[size] = bench.size(size, work.clients(sizes[0]), 1)
    return Plays(probes, rounds, proofs, strong=not work.weak)


def refuse_little_memory(work: Work, units: Units, sizes: list[int], on_gpu: bool) -> None:
    """Raise UserError when a rank needs more memory than its share of the node or GPU."""
    spots = units.spots
    on_node = len(spots) // len(units.nodes)
    heaviest = {sizes[0], sizes[-1]} if work.weak else {sizes[0]}  # clients of a rank, or all that are registered
    needs = [memory_bytes(work, size, units.of_ranks.count(0) * size, on_gpu) for size in heaviest]
    need = max(needs)
    has = min(spot.gpu_memory for spot in spots) if on_gpu else min(spot.memory for spot in spots) // on_node
    if has and need > has:
        place = "of a GPU" if on_gpu else f"of memory with {on_node} on a node"
        raise UserError(
            f"class {work.of.name}: a rank needs about {decimal(need)} {place}, but has {decimal(has)}; "
            "start fewer ranks on a node, or take a smaller class"
        )


def memory_bytes(work: Work, size: int, num_ranks: int, on_gpu: bool) -> int:
    """Bytes that a rank needs on a part of `size` units and `num_ranks` ranks; on a GPU without the libraries' own."""
    needs = forecast.plan(work.config(work.clients(size), 1), num_ranks).memory_bytes
    return sum(needs.values()) - (needs.get("libraries", 0) if on_gpu else 0)


def result_of(bench: Bench, plays: Plays, start_up: dict[str, float], backend: str) -> dict[str, Any]:
    """Everything of the result but head and inputs. An invalid one has no number and no curve."""
    work, units, judged = bench.work, bench.units, verdict.judge(plays, bench.units, bench.work.of.accuracy)
    largest = plays.curve[max(plays.curve)][0]
    complete = all(part.seconds for of_size in plays.curve.values() for part in of_size)
    rows = curve.curve(plays.curve, units) if complete and judged.valid else []
    unit, place = "node" if units.are_nodes else "rank", topology(bench, backend)
    return {
        "result_schema": RESULT_SCHEMA,
        "class": {
            "name": work.of.name,
            "version": VERSION,
            "digest": work.of.digest,
            "scaling": "weak" if work.weak else "strong",
            "fraction": work.fraction,
            "repeats": work.repeats,
        },
        **judged.as_dict(),
        "warnings": quiet.warnings(rows, place["nodes"], unit),
        "number": {"unit": "client updates per second", **rows[-1]["client_updates_per_second"]} if rows else None,
        "unit": unit,
        "curve": rows,
        "phases": curve.phases(largest) if complete else {},
        "slowest": curve.slow(largest, units) if complete else {},
        "accuracy": largest.accuracy if largest.accuracy == largest.accuracy else None,
        "peak_memory_bytes": largest.peak_memory_bytes,
        "digests": {
            "alone": plays.probes,
            "proof": {str(size): [part.digests for part in of_size] for size, of_size in plays.proofs.items()},
            "rounds": {str(size): [part.digests for part in of_size] for size, of_size in plays.curve.items()},
        },
        "start_up_seconds": start_up,
        "topology": place,
        "settings": surround.settings(),
        "clocks": surround.clocks(),
    }


def topology(bench: Bench, backend: str) -> dict[str, Any]:
    """Nodes, ranks, and what started and connects them."""
    spots, units = bench.units.spots, bench.units
    first = {spot.node: spot for spot in reversed(spots)}
    nodes = [
        {
            "host": first[name].host,
            "ranks": [rank for rank, spot in enumerate(spots) if spot.node == name],
            "cpu": first[name].cpu,
            "cores": first[name].node_cores,
            "load": first[name].load,
            "cores_of_rank": first[name].cores,
            "threads_of_rank": first[name].threads,
            "memory": first[name].memory,
            "gpu": first[name].gpu,
        }
        for name in units.nodes
    ]
    counts = {"num_nodes": len(nodes), "num_ranks": len(spots)}
    return counts | {"launcher": bench.tools.launch.launcher, "backend": backend, "nodes": nodes}


def inputs(work: Work, size: int, built: experiment.Experiment) -> dict[str, Any]:
    """What was played on the largest size."""
    setup = built.setup
    return {
        "model": work.of.model,
        "method": work.of.method,
        "dataset": built.dataset.name,
        "clients": work.clients(size),
        "registered_clients": setup.holdings.num_clients,
        "steps": work.of.steps,
        "num_params": setup.method.num_params,
        "allreduce_bytes": 8 * (2 * setup.method.num_params + 2),
        "group_size": setup.grouping.most,
        "model_weights": built.weights,
        "images": built.features.digest,
        "config": built.config.to_yaml(),
    }
