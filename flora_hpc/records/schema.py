"""The tables and attributes of run.h5: name, type, unit and meaning of each. Change one and raise SCHEMA.

Three byte counts, never mixed: uplink and downlink are what a federation would send (payload x clients); collective is what
ranks handed to collectives. Waiting for slow ranks is `wait_seconds`, never communication.
"""

from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.void]
# since 10 parts of `setup_seconds`;
# since 9 ranks of adapters and their accuracies, and `backdoor_success`;
# since 8 attackers and `cross_term`; since 7 `validation_accuracy`, personal accuracies, and norms of messages and memories;
# since 6 `plugins`; since 5 columns have a unit and a description in the file; since 4 there is /split (`records.split`)
SCHEMA = 10
FORMAT = ("v110", "v110")  # of HDF5 1.10, the oldest with SWMR, which cannot open newer formats
TEXT = h5py.string_dtype("utf-8", 64)


class Field(NamedTuple):
    """A column of a table, or an attribute of the file."""

    name: str
    type: str  # of numpy, or text
    unit: str  # 1: a number without unit; empty for texts
    meaning: str


def _seconds(*fields: tuple[str, str]) -> tuple[Field, ...]:
    return tuple(Field(f"{name}_seconds", "float64", "s", meaning) for name, meaning in fields)


# Seconds of /rounds are means over ranks and cover all wall time since the round before:
# batch + train + sum + wait + comm + server + eval + log = round, but for the loop between them.
PHASES = _seconds(
    ("batch", "who trains, in which groups, on which examples; before schema 3, within train_seconds"),
    ("train", "tensor work of training alone"),
    ("sum", "exact sums of updates, and a row for each client; before schema 3, within train_seconds"),
    ("wait", "in collectives, until the last rank came"),
    ("comm", "in collectives, as the rank spends that comes last"),
    ("server", "the server's rule"),
    ("eval", "test of the adapter"),
    ("log", "digest, reports, handing the round before to a thread that writes it"),
    ("round", "wall time since the round before; the other phases add up to it"),
)
BYTES = (
    Field("uplink_bytes", "int64", "byte", "what clients would send to the server: updates as they are encoded, and rows besides"),
    Field(
        "downlink_bytes", "int64", "byte", "what clients would receive from the server: shared parts of the adapter, and messages"
    ),
)
WORST = ("worst_client", "personal_worst_client", "worst_rank")  # columns of /rounds with a number of a client or a rank; -1: none
DECILES = tuple(f"personal_decile_{number}" for number in range(1, 10))
COLLECTIVE = Field("collective_bytes", "int64", "byte", "what ranks handed to collectives of their backend")

COLUMNS: dict[str, tuple[Field, ...]] = {
    "rounds": (
        Field("round", "int32", "1", "number of the round; 0 is the state before training"),
        Field("num_clients", "int32", "1", "clients that trained"),
        Field("num_rejected", "int32", "1", "of these, left out of the average: their update was not finite or too large"),
        Field("num_attackers", "int32", "1", "of the clients that trained, those that attacked"),
        Field("num_examples", "int64", "1", "training examples of these clients"),
        Field("train_loss", "float64", "1", "mean over the examples seen; NaN in round 0"),
        Field("test_accuracy", "float64", "1", "share of test images that are right, 0 to 1; NaN when not evaluated"),
        Field(
            "validation_accuracy",
            "float64",
            "1",
            "the same of validation images; NaN also without data.validation_fraction",
        ),
        Field("client_accuracy_mean", "float64", "1", "mean accuracy of clients on their own mix; NaN without evaluate.per_client"),
        Field("client_accuracy_std", "float64", "1", "standard deviation of these accuracies"),
        Field("client_accuracy_min", "float64", "1", "lowest of these accuracies"),
        Field("worst_client", "int64", "1", "client that has the lowest one; -1 when not evaluated"),
        Field(
            "personal_accuracy_mean",
            "float64",
            "1",
            "mean accuracy of the round's clients, each with its own model on its own mix; NaN without evaluate.personal",
        ),
        Field("personal_accuracy_std", "float64", "1", "standard deviation of these accuracies"),
        Field("personal_accuracy_min", "float64", "1", "lowest of these accuracies"),
        Field("personal_worst_client", "int64", "1", "client that has the lowest one; -1 when not evaluated"),
        *(
            Field(name, "float64", "1", f"the accuracy that {number} in 10 of these do not exceed, interpolated")
            for number, name in enumerate(DECILES, 1)
        ),
        Field("personal_global_mean", "float64", "1", "mean accuracy of the server's adapter on the mixes of the same clients"),
        Field(
            "rank_accuracy_mean",
            "float64",
            "1",
            "mean over the round's clients of the test accuracy of the adapter cut to their rank; NaN without evaluate.per_rank",
        ),
        Field("rank_accuracy_min", "float64", "1", "lowest of these accuracies"),
        Field("worst_rank", "int32", "1", "rank of adapters that has the lowest one; -1 when not evaluated"),
        Field(
            "backdoor_success",
            "float64",
            "1",
            "share of triggered test images of other classes that get the attack's target; NaN without attack backdoor",
        ),
        Field("message_norm", "float64", "1", "Euclidean norm of all that the server sends besides the adapter; NaN without"),
        Field(
            "cross_term",
            "float64",
            "1",
            "norm of mean B A - mean B mean A over that of mean B A, of all layers; NaN without evaluate.cross_term",
        ),
        *BYTES,
        Field("message_bytes", "int64", "byte", "of downlink_bytes, what the server sends besides the adapter"),
        COLLECTIVE,
        *PHASES,
    ),
    "ranks": (
        Field("round", "int32", "1", "number of the round"),
        Field("rank", "int32", "1", "number of the rank"),
        Field("num_clients", "int32", "1", "clients that this rank trained"),
        *PHASES,
        COLLECTIVE,
        Field("peak_memory_bytes", "int64", "byte", "largest resident set of the process since it started"),
    ),
    "clients": (
        Field("round", "int32", "1", "number of the round"),
        Field("client", "int64", "1", "number of the client"),
        Field("rank", "int32", "1", "rank that trained it"),
        Field(
            "group",
            "int32",
            "1",
            "number of its group among those of its rank in this round; a group was trained in one batch of tensors",
        ),
        Field("num_examples", "int32", "1", "training examples that the client holds"),
        Field("num_steps", "int32", "1", "steps of its optimizer in this round"),
        Field("attacks", "int8", "1", "1 for an attacker, 0 for an honest client"),
        Field("adapter_rank", "int32", "1", "rank of the client's adapter after the round, where clients differ in it; else 0"),
        Field("weight", "int64", "1", "in the average; 0 when the update was not finite or too large and was left out"),
        Field("train_loss", "float32", "1", "mean over the examples seen"),
        Field("update_norm", "float32", "1", "Euclidean length of the update"),
        Field("memory_norm", "float32", "1", "Euclidean norm of what the algorithm's local part remembers; NaN without"),
        Field("global_accuracy", "float32", "1", "of the server's new adapter on the client's own mix; NaN when not evaluated"),
        Field("personal_accuracy", "float32", "1", "of the client's own model on its own mix; NaN when not evaluated"),
        Field("rank_accuracy", "float32", "1", "of the server's new adapter, cut to the client's rank, on all test images; or NaN"),
        Field("train_seconds", "float32", "s", "its share, by steps, of the time of its group (batch, train and sum)"),
        *BYTES,
    ),
    "topology": (
        Field("rank", "int32", "1", "number of the rank"),
        Field("host", "text", "", "name of its node"),
        Field("local_rank", "int32", "1", "its place on that node"),
        Field("device", "text", "", "what it computes on"),
        Field("num_threads", "int32", "1", "threads that it computes with"),
    ),
}

SETUP = {  # parts of `setup_seconds`
    "start": "of setup_seconds: imports, the configuration, connecting the ranks",
    "build": "of setup_seconds: the data, the model and its weights, digests",
    "features": "of setup_seconds: features from the store or computed; where a method sees pixels, looking for damage",
    "state": "of setup_seconds: checks of the images, shared counters, the first state or a checkpoint",
}

ATTRIBUTES = (
    Field("schema", "int64", "1", "version of these tables"),
    Field("status", "text", "", "running, finished, stopped by a signal, interrupted or failed; of a fixed length, bytes to h5py"),
    Field(
        "screen", "text", "", "why part of the run's output was lost or changed; empty when all of it was shown; of a fixed length"
    ),
    Field("seed", "int64", "1", "seed of every random number"),
    Field("config", "text", "", "YAML, every default written out: save it and run it again"),
    Field("versions", "text", "", "JSON: versions and settings of what decides the numbers"),
    Field("launcher", "text", "", "what started the ranks"),
    Field("backend", "text", "", "what the ranks communicate with"),
    Field("world_size", "int64", "1", "ranks"),
    Field("dataset", "text", "", "name of the dataset"),
    Field("features", "text", "", "file of the image features; memory; or empty for methods that see pixels"),
    Field("features_made_by", "text", "", "JSON: versions and device that computed the features, and when"),
    Field("num_features_computed", "int64", "1", "images encoded before round 0; 0 when all came from the store"),
    Field("num_damaged", "int64", "1", "images left out because they cannot be decoded"),
    Field("left_out", "text", "", "JSON: files that are no images of the dataset, reason and number"),
    Field("warnings", "text", "", "JSON: sentences that were shown before round 0"),
    Field("num_clients", "int64", "1", "registered clients"),
    Field("num_params", "int64", "1", "numbers that one client trains; of the largest one, where they differ"),
    Field("algorithm", "text", "", "name of the algorithm, and of parts that were named instead of its own"),
    Field("num_private_params", "int64", "1", "of num_params, numbers that stay with each client"),
    Field("payload_bytes", "int64", "byte", "an update as float32; of the largest client, where they differ"),
    Field("how", "text", "", "what is computed how"),
    Field("group_size", "int64", "1", "clients of a group at most; where ranks have less to do, groups are smaller"),
    Field("num_groups", "int64", "1", "groups of round 1"),
    Field("setup_seconds", "float64", "s", "from the start of the program to round 0, seen from rank 0"),
    *(Field(f"setup_{part}_seconds", "float64", "s", meaning) for part, meaning in SETUP.items()),
    Field("resumed_after", "text", "", "JSON: the last round before each time that the run went on; -1 for none"),
    Field("extended_after", "text", "", "JSON: the last round each time that the finished run was given more rounds"),
    Field(
        "identity",
        "text",
        "",
        "JSON: digest of each part of data, weights and users' own code, which decide the results",
    ),
    Field("plugins", "text", "", "JSON: users' own parts that came from a file -> its path; never run when a run is read"),
)


def _dtype(fields: tuple[Field, ...]) -> np.dtype[Any]:
    return np.dtype([(field.name, TEXT if field.type == "text" else field.type) for field in fields])


TABLES: dict[str, np.dtype[Any]] = {name: _dtype(fields) for name, fields in COLUMNS.items()}
ROUNDS, RANKS, CLIENTS, TOPOLOGY = TABLES.values()

SINCE = {  # (table, column) -> the first schema with it; attributes have no table; others are there from the beginning
    **{("", f"setup_{part}_seconds"): 10 for part in SETUP},
    **{("rounds", name): 9 for name in ("rank_accuracy_mean", "rank_accuracy_min", "worst_rank", "backdoor_success")},
    **{("clients", name): 9 for name in ("adapter_rank", "rank_accuracy")},
    **{("rounds", name): 8 for name in ("num_attackers", "cross_term")},
    ("clients", "attacks"): 8,
    **{("rounds", field.name): 7 for field in COLUMNS["rounds"] if field.name.startswith(("personal_", "message_", "validation_"))},
    **{("clients", name): 7 for name in ("memory_norm", "global_accuracy", "personal_accuracy")},
    **{("", name): 7 for name in ("algorithm", "num_private_params")},
    ("", "plugins"): 6,
    **{(table, f"{phase}_seconds"): 3 for table in ("rounds", "ranks") for phase in ("batch", "sum")},
    **{("rounds", name): 2 for name in ("client_accuracy_mean", "client_accuracy_std", "client_accuracy_min", "worst_client")},
}
