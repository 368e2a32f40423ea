"""Runs and rounds made up for tests."""

from typing import Any

import numpy as np

from flora_hpc.records.known import RoundRecord, RunInfo
from flora_hpc.records.schema import CLIENTS, RANKS, ROUNDS, TOPOLOGY, Rows
from flora_hpc.records.split import Split

CONFIG = """\
seed: 7
rounds: 2
model: {name: flora-tiny}
method: {name: flora}
data: {name: digits}
partition: {name: iid, num_clients: 40}
cohort: {fraction: null, size: 3}
"""

NAN = float("nan")
SECONDS = {  # of a trained round; they add up
    "batch_seconds": 0.0625,
    "train_seconds": 0.375,
    "sum_seconds": 0.0625,
    "wait_seconds": 0.125,
    "comm_seconds": 0.0625,
    "server_seconds": 0.03125,
    "eval_seconds": 0.25,
    "log_seconds": 0.03125,
    "round_seconds": 1.0,
}


def rows(dtype: np.dtype[Any], *values: dict[str, Any]) -> Rows:
    """Rows of a table from dictionaries; columns that are not named are zero."""
    table = np.zeros(len(values), dtype)
    for row, named in zip(table, values, strict=True):
        for name, value in named.items():
            row[name] = value
    return table


def run_info(**changes: Any) -> RunInfo:
    """A run of 40 clients on two ranks, three clients a round."""
    topology = rows(
        TOPOLOGY,
        {"rank": 0, "host": "node1", "local_rank": 0, "device": "cpu", "num_threads": 4},
        {"rank": 1, "host": "node2", "local_rank": 0, "device": "cpu", "num_threads": 4},
    )
    facts: dict[str, Any] = {
        "seed": 7,
        "config": CONFIG,
        "versions": {"python": "3.11.1", "numpy": "2.0.0"},
        "launcher": "mpich",
        "backend": "mpi",
        "world_size": 2,
        "topology": topology,
        "num_rounds": 2,
        "num_clients": 40,
        "num_params": 25,
        "payload_bytes": 100,
        "algorithm": "fedavg",
        "how": "each image once",
        "group_size": 2,
        "num_groups": 2,
        "dataset": "digits",
        "features": "memory",
        "features_made_by": "{}",
        "num_features_computed": 1797,
        "num_damaged": 0,
        "split": Split(np.arange(40), np.tile([[10, 0], [4, 6]], (20, 1)), ("a café", "two")),
        "setup_seconds": 1.5,
        "setup_parts": {"start": 1.0, "build": 0.25, "features": 0.125, "state": 0.125},
    }
    return RunInfo(**facts | changes)


def round_record(number: int, accuracy: float = NAN, num_rejected: int = 0, num_clients: int = 3) -> RoundRecord:
    """Clients 0, 1, ... of 10 examples each, on two ranks; the last `num_rejected` are left out. Round 0 trains none."""
    num_clients = num_clients if number else 0
    clients = np.zeros(num_clients, CLIENTS)
    ids = np.arange(num_clients)
    clients["round"], clients["client"], clients["rank"], clients["group"] = number, ids, ids % 2, ids // 2
    clients["num_examples"], clients["num_steps"], clients["weight"] = 10, 2, 10
    clients["train_loss"], clients["update_norm"], clients["train_seconds"] = 1.25, 0.5, 0.25
    clients["uplink_bytes"] = clients["downlink_bytes"] = 100
    for column in ("memory_norm", "global_accuracy", "personal_accuracy", "rank_accuracy"):
        clients[column] = NAN
    for column, value in (("weight", 0), ("train_loss", NAN), ("update_norm", np.inf)):
        clients[column][num_clients - num_rejected :] = value
    by_rank = [int((clients["rank"] == rank).sum()) for rank in (0, 1)]
    shared = {"round": number, "collective_bytes": 2000, "peak_memory_bytes": 10**9} | SECONDS
    ranks = rows(RANKS, *({"rank": rank, "num_clients": count} | shared for rank, count in enumerate(by_rank)))
    row = rows(
        ROUNDS,
        {
            "round": number,
            "num_clients": num_clients,
            "num_rejected": num_rejected,
            "num_examples": 10 * num_clients,
            "train_loss": 1.25 if num_clients > num_rejected else NAN,
            "test_accuracy": accuracy,
            "validation_accuracy": NAN,
            "client_accuracy_mean": NAN,
            "client_accuracy_std": NAN,
            "client_accuracy_min": NAN,
            "worst_client": -1,
            "personal_accuracy_mean": NAN,
            "personal_accuracy_std": NAN,
            "personal_accuracy_min": NAN,
            "personal_worst_client": -1,
            **dict.fromkeys((f"personal_decile_{number}" for number in range(1, 10)), NAN),
            "personal_global_mean": NAN,
            "rank_accuracy_mean": NAN,
            "rank_accuracy_min": NAN,
            "worst_rank": -1,
            "message_norm": NAN,
            "backdoor_success": NAN,
            "cross_term": NAN,
            "uplink_bytes": 100 * num_clients,
            "downlink_bytes": 100 * num_clients,
            "collective_bytes": 4000,
        }
        | SECONDS,
    )
    return RoundRecord(row, ranks, clients)
