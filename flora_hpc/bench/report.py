"""The cost of a report on a long run with many clients: seconds, memory, size of the page."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from flora_hpc.bench import madeup
from flora_hpc.bench.methods import processor
from flora_hpc.errors import UserError
from flora_hpc.records.opened import open_run

CHILD = """
import sys
from flora_hpc.cli import main
try:
    main()
finally:
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print("peak kB", peak.split()[1], file=sys.stderr)
"""


class Measured(NamedTuple):
    """The cost of one report."""

    seconds: float  # of the whole command, imports included
    peak_bytes: int
    page_bytes: int


def measure(num_rounds: int, num_clients: int, num_ranks: int, repeats: int, records: str = "all") -> dict[str, Any]:
    """Write a made-up run, and make its report `repeats` times, each in a fresh process; read the last round's rows, too.

    `records` is a value of `records.clients`. Raises UserError for another one.
    """
    most = madeup.most_rows(records)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run.h5"
        start = time.perf_counter()
        madeup.write(run, num_rounds, num_clients, num_ranks, most)
        write_seconds = time.perf_counter() - start
        reports = [report(run) for _ in range(repeats)]
        run_bytes = run.stat().st_size
        start = time.perf_counter()
        rows = open_run(run).clients_of(num_rounds)
        read_seconds = time.perf_counter() - start
    median = sorted(reports)[len(reports) // 2]
    return {
        "rounds": num_rounds,
        "clients": num_clients,
        "ranks": num_ranks,
        "records": records,
        "client_rows": num_rounds * len(rows),
        "run_bytes": run_bytes,
        "write_seconds": write_seconds,
        "read_round_seconds": read_seconds,
        "seconds": median.seconds,
        "repeat_seconds": [report_cost.seconds for report_cost in reports],
        "peak_bytes": max(report_cost.peak_bytes for report_cost in reports),
        "page_bytes": median.page_bytes,
        "processor": processor(),
    }


def report(run: Path) -> Measured:
    """Make the page of `run` in a fresh process."""
    page = run.with_name("page.html")
    command = [sys.executable, "-c", CHILD, "report", str(run), "-o", str(page)]
    start = time.perf_counter()
    child = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if child.returncode:
        raise UserError(
            f"bench report: the report failed ({child.stderr.strip().splitlines()[-1]}); try `flora-hpc report` by hand"
        )
    peak = next(line for line in child.stderr.splitlines() if line.startswith("peak kB"))
    return Measured(seconds, int(peak.split()[-1]) * 1024, page.stat().st_size)
