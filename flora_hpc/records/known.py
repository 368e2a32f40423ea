"""What is known about a run when it starts, and about a round when it ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from flora_hpc.records.schema import CLIENTS, RANKS, ROUNDS, Rows
from flora_hpc.records.split import Split

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RunInfo:
    """Facts that hold for the whole run; what run.h5 keeps as attributes, and its /split."""

    seed: int
    config: str  # YAML
    versions: dict[str, str]
    launcher: str
    backend: str
    world_size: int
    dataset: str
    features: str  # where the features of images lie: a file, 'memory', or '' for a method that reads pixels
    features_made_by: str  # JSON: the versions and the device that computed the features, and when
    num_features_computed: int  # images that went through the image tower before round 0; the others came from the store
    num_damaged: int  # images left out since they cannot be decoded
    topology: Rows
    num_rounds: int
    num_clients: int  # registered
    num_params: int  # trained by one client
    payload_bytes: int
    how: str  # what is computed how
    group_size: int
    num_groups: int  # of a round
    split: Split | None  # who holds which classes; None where images have captions instead
    setup_seconds: float  # from the start of the program to round 0: imports, model, features
    left_out: Mapping[str, int] = field(default_factory=dict)  # reason -> number of files that are no images of the dataset
    warnings: tuple[str, ...] = ()  # sentences that a user must read before round 0
    identity: Mapping[str, str] = field(default_factory=dict)  # what decides results, beside the configuration -> its digest
    plugins: Mapping[str, str] = field(default_factory=dict)  # the user's own parts in files -> the path of each
    earlier: "Earlier | None" = None  # where the run goes on after it was stopped or killed


@dataclass(frozen=True)
class Earlier:
    """What a run that goes on has behind it."""

    rounds: Rows
    ranks: Rows
    clients: Rows
    resumed_after: list[int]  # the last round before each time that it went on, this one included; -1 for none
    told: list[str] = field(default_factory=list)  # why newer checkpoints are not used, and what could not be compared
    extended_after: list[int] = field(default_factory=list)  # the last round each time that a finished run was given more


@dataclass(frozen=True)
class RoundRecord:
    """One round: its row of /rounds, and its rows of /ranks and /clients."""

    row: Rows  # shape (1,)
    ranks: Rows
    clients: Rows


@dataclass(frozen=True)
class RankReport:
    """What one rank tells rank 0 at the end of a round."""

    rank: Rows  # shape (1,), of RANKS; seconds of waiting and of transfer are told apart when all reports are there
    clients: Rows  # of CLIENTS
    correct: Ints  # of its test images, those of each class that were right; empty when not evaluated
    digest: int  # of the adapter it holds
    collectives: Floats  # seconds of each since the round before, waiting included
    before: Ints = field(default_factory=lambda: np.zeros(0, np.int64))  # as `correct`, with the adapter of the round before

    def to_bytes(self) -> bytes:
        """For a collective; `from_bytes` is its inverse."""
        parts = (self.rank, self.correct, self.before, self.collectives, self.clients)
        header = np.array([self.digest, *map(len, parts)], np.int64)
        return b"".join(part.tobytes() for part in (header, *parts))

    @classmethod
    def from_bytes(cls, data: bytes) -> "RankReport":
        digest, *lengths = np.frombuffer(data, np.int64, 6).tolist()
        dtypes: list[np.dtype[Any]] = [RANKS, np.dtype("i8"), np.dtype("i8"), np.dtype("f8"), CLIENTS]
        parts: list[npt.NDArray[Any]] = []
        start = 6 * 8
        for dtype, length in zip(dtypes, lengths, strict=True):
            parts.append(np.frombuffer(data, dtype, length, start))
            start += parts[-1].nbytes
        rank, correct, before, collectives, clients = parts
        return cls(rank, clients, correct, digest, collectives, before)


SECONDS = [name for name in ROUNDS.names or () if name.endswith("_seconds")]


def merge(round_number: int, reports: list[RankReport]) -> RoundRecord:
    """The record of a round from every rank's report, all but its accuracy.

    Raises RuntimeError when ranks hold different adapters.
    """
    if len({report.digest for report in reports}) > 1:
        holders = ", ".join(f"rank {i}: {report.digest:016x}" for i, report in enumerate(reports))
        raise RuntimeError(f"round {round_number}: the ranks' adapters drifted apart ({holders})")
    ranks = np.concatenate([report.rank for report in reports])
    ranks["wait_seconds"], ranks["comm_seconds"] = tell_apart([report.collectives for report in reports])
    clients = np.concatenate([report.clients for report in reports])
    clients = clients[np.argsort(clients["client"])]
    row = np.zeros(1, ROUNDS)
    row["round"] = round_number
    row["num_clients"], row["num_rejected"] = len(clients), (clients["weight"] == 0).sum()
    row["num_examples"] = clients["num_examples"].sum()
    kept = clients[clients["weight"] > 0]
    row["train_loss"] = np.average(kept["train_loss"], weights=kept["weight"]) if len(kept) else np.nan
    for name in ("test_accuracy", "client_accuracy_mean", "client_accuracy_std", "client_accuracy_min"):
        row[name] = np.nan
    row["worst_client"] = -1
    row["uplink_bytes"], row["downlink_bytes"] = clients["uplink_bytes"].sum(), clients["downlink_bytes"].sum()
    row["collective_bytes"] = ranks["collective_bytes"].sum()
    for name in SECONDS:
        row[name] = ranks[name].mean()
    return RoundRecord(row, ranks, clients)


def tell_apart(collectives: Sequence[Sequence[float]] | Sequence[Floats]) -> tuple[Floats, float]:
    """Seconds that each rank waited for others (num_ranks,), and seconds of transfer, from each rank's seconds of the
    same collectives.

    The last rank to come waits for nobody, so the shortest time that any rank spends in a collective is the transfer's, and what a
    rank spends beyond it is waiting. This needs no barrier before it and no clock that ranks share.
    Raises ValueError when ranks have not been in as many collectives.
    """
    spent = np.array([list(one) for one in collectives], np.float64)
    transfer = spent.min(0)
    return (spent - transfer).sum(1), float(transfer.sum())
