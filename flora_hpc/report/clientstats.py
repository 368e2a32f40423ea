"""What figures show of clients: sums over /clients, which is read once, by round and by column."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from flora_hpc.records.known import Ints
from flora_hpc.records.opened import Run
from flora_hpc.records.schema import Rows
from flora_hpc.report.style import NothingError, Numbers, stretches

MOST_STEPS = 200  # rounds, or stretches of rounds, along a band
FEW = 40  # up to so many clients a round, the pale band spans all of them
LEVELS = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
BANDS = ("update_norm", "train_seconds")


@dataclass(frozen=True)
class Band:
    """Quantiles of the finite values of a column, for stretches of rounds."""

    middles: Numbers  # (num,), the middle round of each stretch
    levels: Numbers  # (len(LEVELS), num)
    num_values: int
    num_rounds: int  # that have such a value

    @property
    def ends(self) -> tuple[float, float]:
        """The two quantiles that bound the pale band."""
        return (0.0, 1.0) if self.num_values <= FEW * self.num_rounds else (0.05, 0.95)

    @property
    def shown(self) -> Numbers:
        """The five quantiles (5, num) of a figure: pale band, dense band and line."""
        return self.levels[[0, 2, 3, 4, 6] if self.ends == (0.0, 1.0) else [1, 2, 3, 4, 5]]


@dataclass(frozen=True)
class ClientStats:
    """The clients with rows (n,), the examples of each in its first row (n,), and the bands by column."""

    clients: Ints
    num_examples: Ints
    rounds: Ints  # that have rows
    bands: dict[str, Band]

    def band(self, column: str) -> Band:
        """The band of a column. Raises NothingError where no value is finite."""
        if not self.bands[column].num_values:
            raise NothingError("Every update was left out of the average: none was finite.")
        return self.bands[column]


@lru_cache(maxsize=4)
def of(run: Run) -> ClientStats:
    """Read the rows of clients of a run, a stretch of rounds at a time."""
    numbers = run.tables["rounds"]["round"][run.tables["rounds"]["num_clients"] > 0]
    starts = stretches(len(numbers), MOST_STEPS).tolist() if len(numbers) else []
    clients: Ints = np.zeros(0, np.int64)
    num_examples: Ints = np.zeros(0, np.int64)
    rounds, parts = [], {name: [] for name in BANDS}  # type: ignore[var-annotated]
    for start, end in pairwise([*starts, len(numbers)]):
        rows = run.clients_of_rounds(int(numbers[start]), int(numbers[end - 1]), ("round", "client", "num_examples", *BANDS))
        if len(rows):
            clients, num_examples = _first_rows(clients, num_examples, rows)
            rounds.append(np.unique(rows["round"]))
            for name in BANDS:
                parts[name].append(_quantiles(rows, name))
    bands = {name: _band([part for part in parts[name] if part[1].size]) for name in BANDS}
    return ClientStats(clients, num_examples, np.concatenate([np.zeros(0, np.int64), *rounds]), bands)


def _first_rows(clients: Ints, num_examples: Ints, rows: Rows) -> tuple[Ints, Ints]:
    """All clients so far, and the examples of the first row of each."""
    if np.array_equal(clients, rows["client"]):  # all clients take part in every round
        return clients, num_examples
    everyone, first = np.unique(np.concatenate([clients, rows["client"]]), return_index=True)
    return everyone, np.concatenate([num_examples, rows["num_examples"]])[first]


Part = tuple[Ints, Numbers, int]  # rounds with finite values, quantiles, number of values


def _quantiles(rows: Rows, name: str) -> Part:
    mask = np.isfinite(rows[name])
    values = rows[name][mask]
    return np.unique(rows["round"][mask]), np.quantile(values, LEVELS) if len(values) else np.zeros(0), len(values)


def _band(parts: Sequence[Part]) -> Band:
    middles = [(rounds[0] + rounds[-1]) / 2 for rounds, _, _ in parts]
    levels = np.array([quantiles for _, quantiles, _ in parts]).reshape(len(parts), len(LEVELS)).T
    return Band(np.array(middles), levels, sum(num for _, _, num in parts), sum(len(rounds) for rounds, _, _ in parts))
