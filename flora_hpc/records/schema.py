"""The tables of run.h5, column by column. Change one and raise SCHEMA.

Three byte counts, never mixed: uplink and downlink are what a federation would send (payload x clients); collective is what
ranks handed to collectives. Waiting for slow ranks is `wait_seconds`, never communication.
"""

from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.void]
SCHEMA = 4  # since 4 there is also /split, see `records.split`
TEXT = h5py.string_dtype("utf-8", 64)

# `round` 0 is the state before training. Seconds are means over ranks and cover all wall time since the round before:
# batch + train + sum + wait + comm + server + eval + log = round, but for the loop between them.
ROUNDS = np.dtype(
    [
        ("round", "i4"),
        ("num_clients", "i4"),  # clients that trained
        ("num_rejected", "i4"),  # of these, left out of the average: their update was not finite or too large
        ("num_examples", "i8"),
        ("train_loss", "f8"),  # mean over examples; NaN in round 0
        ("test_accuracy", "f8"),  # 0..1; NaN when not evaluated
        ("client_accuracy_mean", "f8"),  # of clients tested on their own mix of classes; NaN without evaluate.per_client
        ("client_accuracy_std", "f8"),
        ("client_accuracy_min", "f8"),
        ("worst_client", "i8"),  # who has that minimum; -1 when not evaluated
        ("uplink_bytes", "i8"),
        ("downlink_bytes", "i8"),
        ("collective_bytes", "i8"),
        ("batch_seconds", "f8"),  # who trains, in which groups, on which examples; before schema 3, within train
        ("train_seconds", "f8"),  # tensor work alone
        ("sum_seconds", "f8"),  # exact sums of updates, and a row for each client
        ("wait_seconds", "f8"),
        ("comm_seconds", "f8"),
        ("server_seconds", "f8"),
        ("eval_seconds", "f8"),
        ("log_seconds", "f8"),  # digest, reports, handing the round before to a thread that writes it
        ("round_seconds", "f8"),
    ]
)

RANKS = np.dtype(
    [
        ("round", "i4"),
        ("rank", "i4"),
        ("num_clients", "i4"),
        ("batch_seconds", "f8"),
        ("train_seconds", "f8"),
        ("sum_seconds", "f8"),
        ("wait_seconds", "f8"),
        ("comm_seconds", "f8"),
        ("server_seconds", "f8"),
        ("eval_seconds", "f8"),
        ("log_seconds", "f8"),
        ("round_seconds", "f8"),
        ("collective_bytes", "i8"),
        ("peak_memory_bytes", "i8"),  # of the process (resident set), since it started
    ]
)

CLIENTS = np.dtype(
    [
        ("round", "i4"),
        ("client", "i8"),
        ("rank", "i4"),
        ("group", "i4"),  # clients of one group were trained in one batch of tensors
        ("num_examples", "i4"),
        ("num_steps", "i4"),
        ("weight", "i8"),  # in the average; 0 when the update was not finite or too large and was left out
        ("train_loss", "f4"),  # mean over the examples seen
        ("update_norm", "f4"),  # Euclidean
        ("train_seconds", "f4"),  # its share of its group's time, by steps
        ("uplink_bytes", "i8"),
        ("downlink_bytes", "i8"),
    ]
)

TOPOLOGY = np.dtype([("rank", "i4"), ("host", TEXT), ("local_rank", "i4"), ("device", TEXT), ("num_threads", "i4")])

TABLES: dict[str, np.dtype[Any]] = {"rounds": ROUNDS, "ranks": RANKS, "clients": CLIENTS, "topology": TOPOLOGY}
