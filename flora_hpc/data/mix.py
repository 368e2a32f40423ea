"""Statistics of a split: class counts of some clients, and figures that hold for any number of clients."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flora_hpc import seeds
from flora_hpc.data.holdings import Holdings, Partition
from flora_hpc.data.images import Ints

Floats = npt.NDArray[np.float64]

MOST_SHOWN = 1000  # clients whose class counts are stored
MOST_EXAMINED = 10_000  # clients whose examples are counted
MOST_WORK = 200_000  # limit where clients draw their examples: a few seconds, see `_examined`
BLOCK = 256  # clients counted at once
MOST_WORK_OF_A_RUN = 40_000  # the same limit for a run, which stores only class counts: half a second at most
NUM_BY_CHANCE = 200  # random clients, for the divergence that chance alone gives


@dataclass(frozen=True)
class Mix:
    """Statistics of a split. All clients are registered, many are examined, and some of these are shown.

    Shown and examined clients are spread evenly over all ids. The shown `clients` (num_shown,) int64 have `counts`
    (num_shown, num_classes) int64 examples of each class. For the examined clients, `sizes`, `classes` and `divergences`
    (num_examined,) are the number of examples, the number of classes, and the divergence (0..1) from all training images.
    """

    clients: Ints
    counts: Ints
    sizes: Ints
    classes: Ints
    divergences: Floats
    by_chance: float  # mean divergence of clients of these sizes that draw at random from all training images
    class_names: tuple[str, ...]
    available: Ints  # (num_classes,) int64 training images of each class
    held: Ints  # (num_classes,) int64 training images that some client holds; if not `exact`, some examined client
    num_clients: int
    exact: bool  # `held` is known for all clients
    unit: str = "class"  # or "caption" for image-caption pairs

    @property
    def units(self) -> str:
        """The plural of `unit`."""
        return {"class": "classes", "caption": "captions"}[self.unit]

    @property
    def num_shown(self) -> int:
        return len(self.clients)

    @property
    def num_examined(self) -> int:
        return len(self.sizes)

    @property
    def num_classes(self) -> int:
        return len(self.available)

    @property
    def num_examples(self) -> int:
        """Sum of the examples of all clients; unless `examined_all`, the mean of examined clients times all clients."""
        return round(int(self.sizes.sum()) * self.num_clients / self.num_examined)

    @property
    def num_nobodys(self) -> int | None:
        """Training images that no client holds; None unless `exact`."""
        return int((self.available - self.held).sum()) if self.exact else None

    @property
    def examined_all(self) -> bool:
        return self.num_examined == self.num_clients

    @property
    def overlap(self) -> float:
        """Mean number of examined clients that hold an image, over all images held: 1 where no two clients share one."""
        is_partition = self.exact and not self.examined_all  # `held` is then of more clients than `sizes`
        return 1.0 if is_partition else float(self.sizes.sum() / self.held.sum())


def mix_of(
    holdings: Holdings,
    labels: Ints,
    train: Ints,
    class_names: Sequence[str],
    max_clients: int = MOST_SHOWN,
    unit: str = "class",
) -> Mix:
    """Compute the statistics of a split. Shows at most `max_clients`; examines as many as take a few seconds and little memory.

    `labels` (num_images,) int64 are the labels of the whole dataset; `train` (num_train,) int64 are the rows of training images.
    """
    num_classes = len(class_names)
    available = _count(labels[train], num_classes)
    examined = _examined(holdings, num_classes)
    shown = spread(len(examined), max_clients)
    counts, classes, divergences, is_held = [], [], [], np.zeros(len(labels), bool)
    for start in range(0, len(examined), BLOCK):
        block = np.zeros((min(BLOCK, len(examined) - start), num_classes), np.int64)
        for row, client in enumerate(examined[start : start + BLOCK].tolist()):
            examples = holdings.examples(client)
            block[row] = _count(labels[examples], num_classes)
            is_held[examples] = True
        counts.append(block[shown[(shown >= start) & (shown < start + BLOCK)] - start])
        classes.append((block > 0).sum(1))
        divergences.append(divergence(block, available))
    rows = holdings.order if isinstance(holdings, Partition) else np.flatnonzero(is_held)
    sizes = holdings.sizes(examined)
    return Mix(
        clients=examined[shown],
        counts=np.concatenate(counts),
        sizes=sizes,
        classes=np.concatenate(classes),
        divergences=np.concatenate(divergences),
        by_chance=_by_chance(sizes, available),
        class_names=tuple(class_names),
        available=available,
        held=_count(labels[rows], num_classes),
        num_clients=holdings.num_clients,
        exact=isinstance(holdings, Partition) or len(examined) == holdings.num_clients,
        unit=unit,
    )


def counts_of(holdings: Holdings, labels: Ints, num_classes: int) -> tuple[Ints, Ints]:
    """Clients (num_shown,) int64, spread evenly over all, and their examples of each class (num_shown, num_classes) int64.

    At most `MOST_SHOWN` clients; fewer where clients draw their examples and there are many classes.
    """
    clients = spread(holdings.num_clients, MOST_SHOWN)
    if not isinstance(holdings, Partition):
        work = len(clients) * num_classes + int(holdings.sizes(clients).sum()) // 256
        clients = clients[spread(len(clients), max(1, len(clients) * MOST_WORK_OF_A_RUN // max(work, MOST_WORK_OF_A_RUN)))]
    counts = [_count(labels[holdings.examples(client)], num_classes) for client in clients.tolist()]
    return clients, np.stack(counts)


def divergence(counts: Ints, available: Ints) -> Floats:
    """Jensen-Shannon divergence in bits, 0 (equal) to 1 (nothing in common), between class shares of clients and of all images.

    `counts` (num_clients, num_classes) -> (num_clients,); `available` (num_classes,) counts all training images. With the shares p
    and q, and m = (p + q) / 2, it is (KL(p || m) + KL(q || m)) / 2 (Lin,
    "Divergence Measures Based on the Shannon Entropy", 1991).
    """
    p, q = counts / counts.sum(1, keepdims=True), available / available.sum()
    m = (p + q) / 2
    both: Floats = (_relative_entropy(p, m) + _relative_entropy(q, m)) / 2
    return both.clip(0, 1)


def _relative_entropy(p: Floats, m: Floats) -> Floats:
    """KL(p || m) in bits, over the last axis; `m` is positive where `p` is."""
    ratio = np.divide(p, m, out=np.ones_like(m), where=(p > 0) & (m > 0))
    entropy: Floats = (p * np.log2(ratio)).sum(-1)
    return entropy


def spread(num: int, most: int) -> Ints:
    """Choose at most `most` of 0..num-1: one number at random from each of `most` equal intervals, the same in every run.

    A constant step would be wrong: where classes alternate over the clients, it could meet a single class.
    """
    if num <= most:
        return np.arange(num)
    ends = np.arange(most + 1) * num // most
    fractions = seeds.generator(0, "spread of clients").random(most)
    chosen: Ints = ends[:-1] + np.floor(fractions * np.diff(ends)).astype(np.int64)
    return chosen


def _examined(holdings: Holdings, num_classes: int) -> Ints:
    """Ids of the clients to examine."""
    clients = spread(holdings.num_clients, MOST_EXAMINED)
    if isinstance(holdings, Partition):
        return clients
    # a client that draws its examples takes about 15 microseconds for each class and 0.05 for each example
    work = len(clients) * num_classes + int(holdings.sizes(clients).sum()) // 256
    return clients[spread(len(clients), max(1, len(clients) * MOST_WORK // work))] if work > MOST_WORK else clients


def _by_chance(sizes: Ints, available: Ints) -> float:
    """Mean divergence (0..1) of clients of these sizes that draw at random from all training images."""
    rng = seeds.generator(0, "mixes by chance")
    counts = [rng.multivariate_hypergeometric(available, size) for size in sizes[spread(len(sizes), NUM_BY_CHANCE)].tolist()]
    return float(divergence(np.stack(counts), available).mean())


def _count(labels: Ints, num_classes: int) -> Ints:
    return np.bincount(labels, minlength=num_classes)
