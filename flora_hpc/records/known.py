"""What is known about a run when it starts, and about a round when it ends."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from flora_hpc.records.schema import CLIENTS, RANKS, ROUNDS, Rows

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RunInfo:
    """Facts that hold for the whole run; what run.h5 keeps as attributes."""

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
    setup_seconds: float  # from the start of the program to round 0: imports, model, features


@dataclass(frozen=True)
class RoundRecord:
    """One round: its row of /rounds, and its rows of /ranks and /clients."""

    row: Rows  # shape (1,)
    ranks: Rows
    clients: Rows


@dataclass(frozen=True)
class RankReport:
    """What one rank tells rank 0 at the end of a round."""

    rank: Rows  # shape (1,), of RANKS
    clients: Rows  # of CLIENTS
    correct: Ints  # of its test images, those of each class that were right; empty when not evaluated
    digest: int  # of the adapter it holds
    before: Ints = field(default_factory=lambda: np.zeros(0, np.int64))  # as `correct`, with the adapter of the round before

    def to_bytes(self) -> bytes:
        """For a collective; `from_bytes` is its inverse."""
        header = np.array([self.digest, len(self.correct), len(self.before)], np.int64)
        return b"".join(part.tobytes() for part in (header, self.correct, self.before, self.rank, self.clients))

    @classmethod
    def from_bytes(cls, data: bytes) -> "RankReport":
        digest, num_correct, num_before = np.frombuffer(data, np.int64, 3).tolist()
        counts, start = np.frombuffer(data, np.int64, num_correct + num_before, 24), 24 + 8 * (num_correct + num_before)
        rank, clients = np.frombuffer(data, RANKS, 1, start), np.frombuffer(data, CLIENTS, -1, start + RANKS.itemsize)
        return cls(rank, clients, counts[:num_correct], digest, counts[num_correct:])


SECONDS = [name for name in ROUNDS.names or () if name.endswith("_seconds")]


def merge(round_number: int, reports: list[RankReport]) -> RoundRecord:
    """The record of a round from every rank's report, all but its accuracy.

    Raises RuntimeError when ranks hold different adapters.
    """
    if len({report.digest for report in reports}) > 1:
        holders = ", ".join(f"rank {i}: {report.digest:016x}" for i, report in enumerate(reports))
        raise RuntimeError(f"round {round_number}: the ranks' adapters drifted apart ({holders})")
    ranks = np.concatenate([report.rank for report in reports])
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
