"""A whole result of a benchmark of two nodes, with known numbers."""

import json
from typing import Any

from flora_hpc.bench.cluster import classes, curve, verdict
from flora_hpc.bench.cluster.verdict import Plays
from flora_hpc.bench.head import head
from tests.bench.cluster.known import played, units_of


def whole(seconds: tuple[float, ...] = (2.0, 2.0, 2.0), name: str = "T", **of: Any) -> dict[str, Any]:
    """Rounds of 12 clients that took so long on two nodes, and 3 s on one."""
    units = units_of("n0", "n1")
    plays = {1: [played([0], seconds=(3, 3, 3)), played([1], seconds=(3, 3, 3))], 2: [played([0, 1], seconds=seconds)]}
    judged = verdict.judge(Plays(["x", "x"], plays, plays, True), units, (0.5, 1.0))
    rows = curve.curve(plays, units)
    node = {"cpu": "Fast CPU", "cores": 16, "load": 0.25, "cores_of_rank": 8, "threads_of_rank": 4, "memory": 64 * 10**9, "gpu": ""}
    work = classes.Work(classes.find(name))
    result = {
        **head("cluster", ["bench", "cluster"]),
        "time": "2026-01-01T00:00:00+00:00",
        "host": "n0",
        "result_schema": 1,
        "class": {"name": name, "version": 1, "digest": work.of.digest, "scaling": "strong", "fraction": 1.0, "repeats": 5} | of,
        **judged.as_dict(),
        "warnings": [],
        "number": {"unit": "client updates per second", **rows[-1]["client_updates_per_second"]},
        "unit": "node",
        "curve": rows,
        "phases": curve.phases(plays[2][0]),
        "slowest": curve.slow(plays[2][0], units),
        "accuracy": 0.9,
        "peak_memory_bytes": 10**9,
        "digests": {"alone": ["x", "x"], "proof": {"1": [["p"]]}, "rounds": {"1": [["a", "b"]], "2": [["a", "b"]]}},
        "start_up_seconds": {"to_ranks_connected": 4.0, "model_and_features": 2.0, "images_encoded": 1797},
        "topology": {
            "num_nodes": 2,
            "num_ranks": 2,
            "launcher": "slurm",
            "backend": "mpi",
            "nodes": [node | {"host": f"n{number}", "ranks": [number]} for number in range(2)],
        },
        "settings": {"OMP_NUM_THREADS": "4"},
        "clocks": {},
        "inputs": {"model": work.of.model, "method": work.of.method, "clients": 12, "steps": work.of.steps},
    }
    copy: dict[str, Any] = json.loads(json.dumps(result))
    return copy
