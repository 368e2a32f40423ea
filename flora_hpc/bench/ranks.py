"""What a round costs beside training where there are very many ranks; one process does the work of one rank at a time."""

import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flora_hpc import configfile, experiment
from flora_hpc.bench import madeup
from flora_hpc.bench.methods import processor
from flora_hpc.bench.round import DEFAULT
from flora_hpc.comm.devices import Room
from flora_hpc.data.images import Ints
from flora_hpc.records import sampled
from flora_hpc.records.hdf5file import Writer
from flora_hpc.records.known import NOT_TESTED, RankReport, RoundRecord, merge
from flora_hpc.round import groups_of_ranks
from flora_hpc.setup import Setup
from flora_hpc.shared import Shared
from flora_hpc.versions import versions

BYTES_PER_SECOND = 10**10  # into rank 0; assumed, and the only number here that is neither measured nor given
REGISTERED = 10  # registered clients for each client of a round
EXAMPLES = 32  # of a client; in the mean, where clients draw their numbers
FEW, FEW_MEMORY = 10**5, 1000  # clients: of the count of ranks with work; of the memory that rank 0 needs anyway
ROOM_BYTES = 8 * 10**9  # for a group: so much that memory does not decide
PARTITIONS = {"fixed": "iid", "drawn": "quantity"}  # whether all clients have equally many examples
FASTER = 10  # a GPU against a core, in the second line of efficiencies; assumed


def measure(
    num_ranks: int, num_clients: int, client_seconds: float, repeats: int, progress: Callable[[str], None], records: str = "all"
) -> dict[str, Any]:
    """Measure each term of a round of `num_clients` on `num_ranks` ranks, where a client trains `client_seconds` on a rank.

    `records` is a value of `records.clients`. Raises UserError for another one.
    """
    most = madeup.most_rows(records)
    shared, schedules = Shared(), {}
    for name in PARTITIONS:
        progress(f"groups of a rank, {name} sizes")
        schedules[name] = schedule_seconds(setup_of(num_clients, name, shared), num_ranks, repeats)
    progress(f"reports of {num_ranks:,} ranks")
    reports = reports_of(num_ranks, num_clients, most)
    choosing = 0.0 if most is None else choice_seconds(num_ranks, num_clients, most, repeats)
    merging = statistics.median(timed(lambda: merged(reports)) for _ in range(repeats))
    wire, received = sum(map(len, reports)) / BYTES_PER_SECOND, sum(map(len, reports))
    progress("memory of rank 0")
    memory = peak_bytes(num_ranks, num_clients, most) - peak_bytes(num_ranks, min(num_clients, FEW_MEMORY), most)
    progress("log")
    terms = {"choice": choosing, "reports": merging, "wire": wire}
    training = -(-num_clients // num_ranks) * client_seconds
    return {
        "num_ranks": num_ranks,
        "num_clients": num_clients,
        "num_registered": REGISTERED * num_clients,
        "client_seconds": client_seconds,
        "records": records,
        "train_seconds": training,
        "schedule_seconds": schedules,
        "choice_seconds": choosing,
        "reports_seconds": merging,
        "received_bytes": received,
        "wire_seconds": wire,
        "wire_bytes_per_second": BYTES_PER_SECOND,
        "rank_0_bytes": memory,
        **log_cost(num_ranks, num_clients, most),
        "efficiency": {
            name: {
                speed: efficiency(training / times, terms | {"schedule": schedules[name]})
                for speed, times in (("given", 1), ("ten_times", FASTER))
            }
            for name in PARTITIONS
        },
        "few_clients": FEW,
        "ranks_with_work": {
            "cpu": ranks_with_work(setup_of(FEW, "fixed", shared), num_ranks),
            "gpu": ranks_with_work(setup_of(FEW, "fixed", shared, gpu=True), num_ranks),
        },
        "repeats": repeats,
        "processor": processor(),
        "versions": versions(),
    }


def efficiency(training: float, terms: dict[str, float]) -> float:
    """The share of a round in which a rank trains, where `terms` are the seconds of all else."""
    return training / (training + sum(terms.values()))


def setup_of(num_clients: int, sizes: str, shared: Shared, gpu: bool = False) -> Setup:
    """The setup of rounds of `num_clients`, whose numbers of examples are fixed or drawn; of shapes, without values."""
    changes = [
        f"cohort.size={num_clients}",
        f"partition.name={PARTITIONS[sizes]}",
        f"partition.num_clients={REGISTERED * num_clients}",
        f"partition.examples_per_client={EXAMPLES}",
    ]
    config, _ = configfile.load(DEFAULT, changes)
    return experiment.build(config, torch.device("meta"), Room(ROOM_BYTES, gpu=gpu), shared).setup


def schedule_seconds(setup: Setup, num_ranks: int, repeats: int) -> float:
    """Median seconds in which a rank finds its groups of a round: who takes part, sizes, costs, assignment."""
    ranks = sorted({0, num_ranks // 2, num_ranks - 1})
    return statistics.median(
        timed(lambda rank=rank, number=number: groups_of_ranks(setup, num_ranks, number, [rank]))  # type: ignore[misc]
        for number in range(1, repeats + 1)
        for rank in ranks
    )


def ranks_with_work(setup: Setup, num_ranks: int) -> int:
    """How many of `num_ranks` ranks have a client to train in round 1."""
    return sum(map(bool, groups_of_ranks(setup, num_ranks, 1)))


def record_of(num_ranks: int, num_clients: int) -> RoundRecord:
    """A made-up round of `num_clients` clients with equally many examples."""
    rng = np.random.default_rng(0)
    return madeup.round_record(1, 2, np.full(num_clients, EXAMPLES), rng.uniform(0.85, 1.0, num_ranks), rng)


def whole_reports(num_ranks: int, num_clients: int) -> list[RankReport]:
    """The reports of all ranks on such a round, with the rows of all clients."""
    record = record_of(num_ranks, num_clients)
    parts = np.array_split(record.clients, num_ranks)
    return [
        RankReport(record.ranks[rank : rank + 1], part, NOT_TESTED, 0, np.array([0.001, 0.002])) for rank, part in enumerate(parts)
    ]


def reports_of(num_ranks: int, num_clients: int, most: int | None = None) -> list[bytes]:
    """The reports of all ranks on such a round, as rank 0 gathers them, with the rows of `most` clients."""
    reports = whole_reports(num_ranks, num_clients)
    if most is not None:
        with_row = chosen(num_clients, most)
        reports = [report.only(with_row) for report in reports]
    return [report.to_bytes() for report in reports]


def chosen(num_clients: int, most: int) -> Ints:
    """The clients that have a row, as each rank draws them; here a client's place in the round is its number."""
    return sampled.chosen(0, 1, most, num_clients, lambda places: places)


def choice_seconds(num_ranks: int, num_clients: int, most: int, repeats: int) -> float:
    """Median seconds in which a rank draws these clients, finds its own among them, and adds up its sums of all."""
    report = whole_reports(num_ranks, num_clients)[0]
    return statistics.median(timed(lambda: report.only(chosen(num_clients, most))) for _ in range(repeats))


def merged(reports: list[bytes]) -> RoundRecord:
    """What rank 0 makes of the reports."""
    return merge(1, [RankReport.from_bytes(data) for data in reports])


def peak_bytes(num_ranks: int, num_clients: int, most: int | None) -> int:
    """The most memory that the reports and their round take on rank 0, as far as Python and NumPy allocate it."""
    reports = reports_of(num_ranks, num_clients, most)
    tracemalloc.start()
    merged(reports)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak + sum(map(len, reports))


def log_cost(num_ranks: int, num_clients: int, most: int | None) -> dict[str, Any]:
    """Processor seconds and bytes of a round in run.h5, by the growth of the file from the first to the second round."""
    record = merged(reports_of(num_ranks, num_clients, most))
    with tempfile.TemporaryDirectory(prefix="flora-hpc-bench-") as folder:
        path = Path(folder) / "run.h5"
        writer = Writer(path, madeup.run_info(2, num_clients, num_ranks, most=most))
        writer.add(record)
        before, started = path.stat().st_size, time.process_time()
        writer.add(record)
        seconds, grown = time.process_time() - started, path.stat().st_size - before
        writer.close("finished")
    return {"log_seconds": seconds, "log_bytes_per_client": grown / num_clients}


def timed(work: Callable[[], object]) -> float:
    """Seconds of this process's processor time that `work` takes: other processes may load the machine."""
    started = time.process_time()
    work()
    return time.process_time() - started
