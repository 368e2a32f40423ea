"""What is known about a run when it starts, and about a round when it ends."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flora_hpc.records import totals
from flora_hpc.records.schema import CLIENTS, DECILES, RANKS, ROUNDS, WORST, Rows
from flora_hpc.records.split import Split
from flora_hpc.records.totals import PERSONAL, TOTALS

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RunInfo:
    """Facts about the whole run: the attributes of run.h5 and its /split."""

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
    num_damaged: int  # images dropped because they cannot be decoded
    topology: Rows
    num_rounds: int
    num_clients: int  # registered
    num_params: int  # trained by one client
    payload_bytes: int
    how: str  # how the method is computed
    group_size: int
    num_groups: int  # of a round
    split: Split | None  # classes by client; None where images have captions instead
    setup_seconds: float  # from the start of the program to round 0
    setup_parts: Mapping[str, float] = field(default_factory=dict)  # of it, by the names of `schema.SETUP`
    left_out: Mapping[str, int] = field(default_factory=dict)  # reason -> number of files that are no images of the dataset
    warnings: tuple[str, ...] = ()  # sentences that a user must read before round 0
    identity: Mapping[str, str] = field(default_factory=dict)  # what decides results beside the configuration -> its digest
    algorithm: str = ""  # name, and names of the parts that were named instead of its own
    num_private_params: int = 0  # of num_params, numbers that stay with each client
    plugins: Mapping[str, str] = field(default_factory=dict)  # the user's own parts in files -> the path of each
    earlier: "Earlier | None" = None  # of a resumed run
    rows_per_round: int = 0  # of /clients; many are compressed


@dataclass(frozen=True)
class Earlier:
    """The history of a resumed run."""

    rounds: Rows
    ranks: Rows
    clients: Iterable[Rows]  # in pieces, each read when it is asked for: all of them may be larger than the memory
    resumed_after: list[int]  # the last round before each resume, this one included; -1 for none
    warnings: list[str] = field(default_factory=list)  # why newer checkpoints are not used, and what could not be compared
    extended_after: list[int] = field(default_factory=list)  # the last round before each extension of a finished run


@dataclass(frozen=True)
class RoundRecord:
    """One round: its row of /rounds, and its rows of /ranks and /clients."""

    row: Rows  # shape (1,)
    ranks: Rows
    clients: Rows
    digest: int = 0  # of the adapter after the round, the same on all ranks


class DriftError(RuntimeError):
    """Ranks hold different adapters. `digests` has each rank's, by rank."""

    def __init__(self, round_number: int, digests: list[int]) -> None:
        names = ", ".join(f"rank {rank}: {digest & 2**64 - 1:016x}" for rank, digest in enumerate(digests))
        super().__init__(f"round {round_number}: the ranks' adapters drifted apart ({names})")
        self.digests = digests


class RightAnswers(NamedTuple):
    """How many images an adapter gave their own class."""

    test: Ints  # by class, of the test images; empty when the adapter was not tested
    validation: int = 0  # of all validation images
    triggered: int = 0  # of the test images with a backdoor's trigger, those that get its target
    by_rank: Ints = np.zeros(0, np.int64)  # of the test images, of the adapter cut to each rank of the round's clients


NOT_TESTED = RightAnswers(np.zeros(0, np.int64))


PARTS: list[np.dtype[Any]] = [RANKS, *[np.dtype("i8")] * 4, np.dtype("f8"), CLIENTS, TOTALS, PERSONAL]  # of a report, as bytes
HEADER = 5 + len(PARTS)  # numbers of 64 bits that begin a report: digest, four counts, and the lengths of its parts


@dataclass(frozen=True)
class RankReport:
    """What one rank reports to rank 0 at the end of a round: rows of all its clients, or of some of them and the sums of all."""

    rank: Rows  # shape (1,), of RANKS; `merge` fills in the seconds of waiting and of transfer
    clients: Rows  # of CLIENTS
    correct: RightAnswers  # on this rank's images
    digest: int  # of the rank's adapter
    collectives: Floats  # seconds of each since the round before, waiting included
    previous_correct: RightAnswers = NOT_TESTED  # with the previous round's adapter
    sums_of_all: Rows | None = None  # shape (1,), of TOTALS; None where `clients` are all clients
    personal: Rows = field(default_factory=lambda: np.zeros(0, PERSONAL))  # of all tested clients, where `clients` are only some

    @cached_property
    def sums(self) -> Rows:
        """The sums (1,) of TOTALS over all clients of the rank."""
        return totals.of(self.clients) if self.sums_of_all is None else self.sums_of_all

    def only(self, chosen: Ints) -> "RankReport":
        """The report with the rows of `chosen` clients (n,) alone. Sums, and accuracies of own models, remain those of all clients.

        Deciles of accuracies need every value. So rounds that test own models send 16 bytes for each client.
        """
        clients = self.clients
        tested, personal = clients[~np.isnan(clients["personal_accuracy"])], np.zeros(0, PERSONAL)
        if len(tested):
            personal = np.zeros(len(tested), PERSONAL)
            for name in PERSONAL.names or ():
                personal[name] = tested[name]
        return replace(self, clients=clients[np.isin(clients["client"], chosen)], sums_of_all=self.sums, personal=personal)

    def to_bytes(self) -> bytes:
        """Encode the report for a collective; `from_bytes` decodes it."""
        parts = (self.rank, *self._counts(), self.collectives, self.clients, self.sums, self.personal)
        right = (count for answers in (self.correct, self.previous_correct) for count in (answers.validation, answers.triggered))
        header = np.array([self.digest, *right, *map(len, parts)], np.int64)
        return b"".join(part.tobytes() for part in (header, *parts))

    @classmethod
    def from_bytes(cls, data: bytes) -> "RankReport":
        digest, *numbers = np.frombuffer(data, np.int64, HEADER).tolist()
        right, lengths = numbers[:4], numbers[4:]
        parts: list[npt.NDArray[Any]] = []
        start = 8 * HEADER
        for dtype, length in zip(PARTS, lengths, strict=True):
            parts.append(np.frombuffer(data, dtype, length, start))
            start += parts[-1].nbytes
        rank, test, by_rank, previous_test, previous_by_rank, collectives, clients, sums, personal = parts
        correct = RightAnswers(test, right[0], right[1], by_rank)
        previous = RightAnswers(previous_test, right[2], right[3], previous_by_rank)
        return cls(rank, clients, correct, digest, collectives, previous, sums, personal)

    def _counts(self) -> list[Ints]:
        """The counts of right answers that have no fixed number."""
        return [counts for answers in (self.correct, self.previous_correct) for counts in (answers.test, answers.by_rank)]


SECONDS = [name for name in ROUNDS.names or () if name.endswith("_seconds")]


def merge(round_number: int, reports: list[RankReport]) -> RoundRecord:
    """Merge every rank's report into the record of a round, without its accuracy.

    Raises DriftError when ranks hold different adapters.
    """
    if len({report.digest for report in reports}) > 1:
        raise DriftError(round_number, [report.digest for report in reports])
    ranks = joined([report.rank for report in reports], RANKS)
    ranks["wait_seconds"], ranks["comm_seconds"] = wait_and_transfer([report.collectives for report in reports])
    clients = by_client(joined([report.clients for report in reports], CLIENTS))
    personal = by_client(joined([report.personal for report in reports], PERSONAL))
    row = np.zeros(1, ROUNDS)
    row["round"] = round_number
    totals.note(row, [report.sums for report in reports])
    forget_tests(row)
    note_personal(row, personal if len(personal) else clients)
    row["message_norm"] = row["cross_term"] = np.nan
    row["collective_bytes"] = ranks["collective_bytes"].sum()
    for name in SECONDS:
        row[name] = ranks[name].mean()
    return RoundRecord(row, ranks, clients, reports[0].digest)


def by_client(rows: Rows) -> Rows:
    """Rows in the order of their clients."""
    if (np.diff(rows["client"]) >= 0).all():  # sorting rows takes longer than all else here
        return rows
    ordered: Rows = rows[np.argsort(rows["client"])]
    return ordered


def joined(parts: Sequence[Rows], dtype: np.dtype[Any]) -> Rows:
    """Concatenate rows of one `dtype`: as bytes, since NumPy would compare the types of all parts, 0.1 ms a part.

    The parts are copied once: they may be as large as the memory that rank 0 has left.
    """
    rows: Rows = np.frombuffer(bytearray().join([np.ascontiguousarray(part).data for part in parts]), dtype)
    return rows


def forget_tests(rows: Rows, mask: npt.NDArray[np.bool_] | None = None, personal_only: bool = False) -> None:
    """Mark the accuracies in rows of /rounds or /clients as not measured: in all rows, or where `mask` (num_rows,) is True."""
    some = slice(None) if mask is None else mask
    for name in rows.dtype.names or ():
        is_personal = name.startswith("personal_")
        if is_personal or (not personal_only and ("accuracy" in name or name in (*WORST, "backdoor_success"))):
            rows[name][some] = -1 if name in WORST else np.nan


def note_personal(row: Rows, clients: Rows) -> None:
    """Put the spread of personal accuracies into a row of /rounds (1,), from rows of /clients or PERSONAL in client order.

    Clients without an accuracy do not count; the row stays as it is where no client has one.
    """
    tested = clients[~np.isnan(clients["personal_accuracy"])]
    if not len(tested):
        return
    accuracies = tested["personal_accuracy"].astype(np.float64)
    row["personal_accuracy_mean"], row["personal_accuracy_std"] = accuracies.mean(), accuracies.std()
    row["personal_accuracy_min"], row["personal_worst_client"] = accuracies.min(), tested["client"][accuracies.argmin()]
    for name, value in zip(DECILES, np.quantile(accuracies, np.arange(1, 10) / 10), strict=True):
        row[name] = value
    row["personal_global_mean"] = tested["global_accuracy"].astype(np.float64).mean()


def wait_and_transfer(collectives: Sequence[Sequence[float]] | Sequence[Floats]) -> tuple[Floats, float]:
    """Seconds that each rank waited (num_ranks,) and seconds of transfer, from each rank's seconds in the same collectives.

    The last rank waits for nobody. So the shortest time in a collective is the transfer, and the rest of a rank's time is waiting:

        rank 0  |------- wait -------|- transfer -|
        rank 1           |-- wait ---|- transfer -|
        rank 2  (the last)           |- transfer -|

    This needs no barrier before the collective and no clock that ranks share.
    Raises ValueError when the ranks took part in different numbers of collectives.
    """
    seconds = np.array(collectives, np.float64)
    transfer = seconds.min(0)
    return (seconds - transfer).sum(1), float(transfer.sum())
