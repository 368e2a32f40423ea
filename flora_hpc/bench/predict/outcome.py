"""A prediction as one JSON object, and the seconds of runs as JSON lines for Extra-P."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from flora_hpc import configfile, forecast
from flora_hpc.bench.predict import point
from flora_hpc.bench.predict.point import SLOWEST, Interval, Model, Round, Target
from flora_hpc.bench.predict.samples import Sample, describe, setup_of
from flora_hpc.config import Config
from flora_hpc.errors import UserError
from flora_hpc.records.schema import CLIENTS, RANKS
from flora_hpc.shared import Shared

PREDICTED, MEASURED = "predicted", "measured"
NODES = tuple(2**power for power in range(11))  # of the page
CLIENTS_OF_ROUND = tuple(10**power for power in range(1, 7))


def predict(model: Model, config: Config, target: Target, shared: Shared) -> dict[str, Any]:
    """Predict a run of `config`: everything of the result but the head."""
    setup = setup_of(config, target.num_ranks, target.gpus_per_node, target.ranks_per_node, shared)
    of_round = point.predict(model, setup, target)
    planned = forecast.plan(config, target.num_ranks, target.gpus_per_node, shared, target.ranks_per_node)
    rows = of_round.num_clients if setup.most_client_rows is None else min(of_round.num_clients, setup.most_client_rows)
    start_up = max(each.setup_seconds for each in model.same_work)
    total = {key: start_up + config.rounds * value for key, value in asdict(of_round.seconds).items()}
    hours = {key: value * target.nodes / 3600 for key, value in total.items()}
    return {
        "nodes": target.nodes,
        "ranks_per_node": target.ranks_per_node,
        "ranks": target.num_ranks,
        "gpus_per_node": target.gpus_per_node,
        "cores_per_node": target.cores,
        "threads_of_rank": model.threads,
        "clients": of_round.num_clients,
        "groups": of_round.num_groups,
        "rounds": config.rounds,
        "round_seconds": asdict(of_round.seconds) | {"is": PREDICTED} | _measured(of_round.measured),
        "terms": {name: _term(model, name, of_round) for name in of_round.terms},
        "dominating": of_round.dominating,
        "client_updates_per_second": {
            "value": of_round.num_clients / of_round.seconds.value,
            "low": of_round.num_clients / of_round.seconds.high,
            "high": of_round.num_clients / of_round.seconds.low,
        },
        "start_up_seconds": {"value": start_up, "is": MEASURED},
        "total_seconds": total,
        "node_hours": hours,
        "gpu_hours": {key: value * target.gpus_per_node for key, value in hours.items()},
        "log_bytes": log_bytes(model.samples, config.rounds, rows, target.num_ranks),
        "memory_bytes_of_rank": sum(planned.memory_bytes.values()),
        "measured_up_to": {"ranks": model.most_ranks, "clients": model.most_clients},
        "runs": [describe(each) + (f"; other work: {each.other}" if each.other else "") for each in model.samples],
        "warnings": list(of_round.warnings),
    }


def grid(model: Model, config: Config, target: Target, shared: Shared, say: Callable[[str], None]) -> dict[str, Any]:
    """Predict a round for NODES and CLIENTS_OF_ROUND, on nodes like the target's; `left_out` says why cohorts are missing."""
    points, left_out = [], {}
    for clients in CLIENTS_OF_ROUND:
        say(f"predicting {clients:,} clients a round")
        try:
            sized = with_clients(config, clients)
            for nodes in NODES:
                points.append(_point(model, sized, replace(target, nodes=nodes), shared))
        except UserError as error:
            left_out[clients] = str(error)
    return {"points": points, "left_out": left_out}


def with_clients(config: Config, clients: int) -> Config:
    """The configuration with as many clients a round, and at least as many registered ones."""
    values: dict[str, Any] = {"cohort.size": clients, "cohort.fraction": None}
    if clients > (registered := getattr(config.partition, "num_clients", None) or 0):
        values["partition.num_clients"] = max(registered, clients)
    return configfile.load_values(config.model_dump(mode="json"), values)[0]


def _point(model: Model, config: Config, target: Target, shared: Shared) -> dict[str, Any]:
    """One point of the grid."""
    setup = setup_of(config, target.num_ranks, target.gpus_per_node, target.ranks_per_node, shared)
    of_round = point.predict(model, setup, target)
    return {
        "nodes": target.nodes,
        "ranks": target.num_ranks,
        "clients": of_round.num_clients,
        **asdict(of_round.seconds),
        "dominating": of_round.dominating,
        "measured": of_round.measured.usual_seconds if of_round.measured else None,
        "warnings": list(of_round.warnings),
    }


def _measured(run: Sample | None) -> dict[str, Any]:
    """The median round of a run of the same point."""
    return {"measured": run.usual_seconds if run else None, "measured_by": run.name if run else None}


def _term(model: Model, name: str, of_round: Round) -> dict[str, Any]:
    """One term for JSON: its seconds, its share of the round, and the runs that it comes from."""
    interval: Interval = of_round.terms[name]
    term = model.terms.get(name)
    sources = list(term.sources) if term else [each.name for each in model.same_work] if name == SLOWEST else []
    return asdict(interval) | {"share": interval.value / of_round.seconds.value, "is": PREDICTED, "from": sources}


def log_bytes(samples: Sequence[Sample], rounds: int, rows: int, num_ranks: int) -> int:
    """About how large run.h5 becomes: rows of /clients as the run with most of them stores them, and rows of /ranks."""
    largest = max(samples, key=lambda each: each.num_rows)
    of_row = min(CLIENTS.itemsize, largest.file_bytes / max(1, largest.num_rows))
    return round(rounds * (rows * of_row + num_ranks * RANKS.itemsize))


def extrap(samples: Sequence[Sample]) -> Iterator[str]:
    """The lines of a file for Extra-P: each phase of each round of each run of the same work, and the round."""
    for each in (each for each in samples if not each.other):
        params = {"ranks": each.num_ranks, "clients": each.drivers.num_clients, "batch": each.config.client.batch_size}
        values = {"round": each.round_seconds} | {f"round->{phase}": table.max(1) for phase, table in each.seconds.items()}
        for path, seconds in values.items():
            for value in np.asarray(seconds).tolist():
                yield json.dumps({"params": params, "callpath": path, "metric": "time", "value": value})
