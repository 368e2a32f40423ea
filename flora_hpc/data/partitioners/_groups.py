"""Group examples by class, or by the value of a column."""

from dataclasses import dataclass

import numpy as np

from flora_hpc.data.images import Column, Ints


@dataclass(frozen=True)
class Groups:
    """Groups 0..num_groups-1, none of them empty: `order[starts[g] : starts[g + 1]]` are the examples of group g."""

    names: Column  # (num_groups,) the class or the value
    group_of: Ints  # (num_examples,) int64, group of each example
    order: Ints  # (num_examples,) int64
    starts: Ints  # (num_groups + 1,) int64

    def __len__(self) -> int:
        return len(self.names)

    @property
    def sizes(self) -> Ints:
        """Number of examples of each group (num_groups,) int64."""
        return np.diff(self.starts)

    @property
    def places(self) -> Ints:
        """Index within its group of each example of `order`: (num_examples,) int64, 0, 1, ... in every group."""
        return np.arange(len(self.order)) - self.starts[self.group_of[self.order]]

    def shuffled(self, rng: np.random.Generator) -> Ints:
        """`order` with the examples of each group in random order."""
        mixed = rng.permutation(len(self.group_of))
        return mixed[np.argsort(self.group_of[mixed], kind="stable")]

    def draw(self, counts: Ints, rng: np.random.Generator) -> Ints:
        """Draw `counts[g]` examples of each group g, none twice, all in random order."""
        nonzero = np.flatnonzero(counts).tolist()
        parts = [rng.choice(self.order[self.starts[g] : self.starts[g + 1]], counts[g], replace=False) for g in nonzero]
        return rng.permutation(np.concatenate(parts))


def group(values: Column) -> Groups:
    """Group examples by `values` (num_examples,): groups in ascending order; for objects, in order of appearance."""
    if values.dtype == object:  # texts of any length, or values that cannot be compared
        numbers: dict[object, int] = {}
        group_of = np.array([numbers.setdefault(value, len(numbers)) for value in values.tolist()], np.int64)
        names = np.array(list(numbers), dtype=object)
    else:
        names, group_of = np.unique(values, return_inverse=True)
    starts = np.concatenate([[0], np.cumsum(np.bincount(group_of, minlength=len(names)))]).astype(np.int64)
    return Groups(names, group_of, np.argsort(group_of, kind="stable"), starts)
