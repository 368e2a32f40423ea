"""The cost of the log: the same runs with run.h5 and without it, in turn, and the size of the file."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flora_hpc import loop
from flora_hpc.bench.round import WARM, setting
from flora_hpc.comm.communicator import Communicator
from flora_hpc.comm.launch import Launch
from flora_hpc.config import Config
from flora_hpc.observers import hdf5
from flora_hpc.records.known import RoundRecord, RunInfo
from flora_hpc.records.schema import Rows


@dataclass
class Meter:
    """An Observer that keeps the rows of /rounds and the cost of writing; without `log` it writes nothing."""

    log: hdf5.Hdf5 | None
    file: Path
    info: RunInfo | None = None
    rows: list[Rows] = field(default_factory=list)
    writer_seconds: list[float] = field(default_factory=list)  # processor time in the background thread
    file_bytes: list[int] = field(default_factory=list)  # after each round, and after the file is closed
    num_client_rows: int = 0

    def started(self, info: RunInfo) -> None:
        self.info = info
        if self.log:
            self.log.started(info)

    def round(self, record: RoundRecord) -> None:
        self.rows.append(record.row.copy())
        self.num_client_rows += len(record.clients)
        if self.log:
            before = time.thread_time()
            self.log.round(record)
            self.writer_seconds.append(time.thread_time() - before)
            self.file_bytes.append(self.file.stat().st_size)

    def ended(self, status: str) -> None:
        if self.log:
            self.log.ended(status)
            self.file_bytes.append(self.file.stat().st_size)

    def timed_rounds(self) -> Rows:
        """The rows of rounds after the warm-up."""
        rounds = np.concatenate(self.rows)
        timed: Rows = rounds[rounds["round"] >= WARM]
        return timed


def play(config: Config, comm: Communicator, me: Launch, with_log: bool) -> Meter:
    """Play a run in a temporary folder; rank 0's meter has the measurement."""
    with tempfile.TemporaryDirectory(prefix="flora-hpc-bench-") as folder:
        out = Path(folder) / "run"
        meter = Meter(hdf5.build(out) if with_log else None, out / "run.h5")
        loop.run(config, comm, me, loop.RunOptions(out, lambda: [meter]))
    return meter


def measure(
    config: Config, comm: Communicator, me: Launch, repeats: int, progress: Callable[[str], None] = lambda text: None
) -> dict[str, Any] | None:
    """Play the run `repeats` times with its log and without, in turn: the result on rank 0, None elsewhere.

    All ranks of `comm` call this.
    """
    meters: dict[bool, list[Meter]] = {True: [], False: []}
    for repeat in range(repeats):
        for with_log in (True, False) if repeat % 2 == 0 else (False, True):  # to and fro: the order favours no side
            progress(f"run of {config.rounds} rounds {'with' if with_log else 'without'} its log ({repeat + 1} of {repeats})")
            meters[with_log].append(play(config, comm, me, with_log))
    info = meters[True][0].info
    if comm.rank != 0 or info is None:
        return None
    return setting(config, vars(info), info.topology, repeats) | result(meters[True], meters[False])


def result(logged: Sequence[Meter], silent: Sequence[Meter]) -> dict[str, Any]:
    """The cost of the log, from runs with a log and as many without. Seconds are medians over rounds."""
    sides = {"with_log": side(logged), "without_log": side(silent)}
    writer = float(np.median(np.concatenate([meter.writer_seconds[WARM:] for meter in logged])))
    round_seconds, log_seconds = sides["with_log"]["round_seconds"], sides["with_log"]["log_seconds"]
    last = logged[-1]
    rows = last.timed_rounds()["num_clients"]
    return {
        "num_clients": int(np.median(rows)),
        "num_rounds": sum(len(meter.timed_rounds()) for meter in logged),
        **sides,
        "round_ratio": round_seconds / sides["without_log"]["round_seconds"],
        "writer_seconds": writer,
        "cost_share": (log_seconds + writer) / round_seconds,
        "file_bytes": last.file_bytes[-1],
        "bytes_per_client_row": last.file_bytes[-1] / last.num_client_rows,
        "growth_per_client_row": (last.file_bytes[-2] - last.file_bytes[WARM - 1]) / int(rows.sum()),
    }


def side(meters: Sequence[Meter]) -> dict[str, Any]:
    """One side of the comparison."""
    rounds = np.concatenate([meter.timed_rounds() for meter in meters])
    return {
        "round_seconds": float(np.median(rounds["round_seconds"])),
        "log_seconds": float(np.median(rounds["log_seconds"])),
        "repeat_round_seconds": [float(np.median(meter.timed_rounds()["round_seconds"])) for meter in meters],
    }
