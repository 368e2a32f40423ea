"""How a split mixes the classes: counts of a few clients, and figures that stay honest for very many."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flora_hpc import seeds
from flora_hpc.data.holdings import Holdings, Partition
from flora_hpc.data.images import Ints

Floats = npt.NDArray[np.float64]

MOST_SHOWN = 1000  # clients whose counts are kept
MOST_EXAMINED = 10_000  # clients that are looked at
MOST_WORK = 200_000  # where clients draw their own examples: a few seconds, see `_examined`
BLOCK = 256  # clients counted at once
MOST_WORK_OF_A_RUN = 40_000  # the same where a run only notes who holds what: at most half a second
NUM_BY_CHANCE = 200  # clients drawn to learn what chance alone does


@dataclass(frozen=True)
class Mix:
    """What a split looks like. Some clients are shown; more may be examined; all are registered.

    Clients that are shown or examined are spread evenly over all ids. `clients` (num_shown,) int64 have `counts`
    (num_shown, num_classes) int64 examples of each class. `sizes`, `classes` and `divergences` (num_examined,) are the number of
    examples, the number of classes held, and how far the shares of classes are from those of all training images, 0..1.
    """

    clients: Ints
    counts: Ints
    sizes: Ints
    classes: Ints
    divergences: Floats
    by_chance: float  # mean divergence of clients of these sizes that draw from all training images alike
    class_names: tuple[str, ...]
    available: Ints  # (num_classes,) int64 training images of each class
    held: Ints  # (num_classes,) int64 those of them that some client holds; that an examined client holds, unless `exact`
    num_clients: int
    exact: bool  # `held` is known for all clients
    unit: str = "class"  # or "caption": what pairs have in place of classes

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
        """Examples of all clients together, an image counted once for each that has it; from the mean unless `examined_all`."""
        return round(int(self.sizes.sum()) * self.num_clients / self.num_examined)

    @property
    def num_nobodys(self) -> int | None:
        """Training images that no client holds; None where too many clients draw their own to know."""
        return int((self.available - self.held).sum()) if self.exact else None

    @property
    def examined_all(self) -> bool:
        return self.num_examined == self.num_clients

    @property
    def overlap(self) -> float:
        """In how many of the clients examined an image is that any of them holds, in the mean: 1 where no two share one."""
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
    """The mix of a split: at most `max_clients` are shown, and as many examined as take a few seconds and little memory.

    `labels` (num_images,) int64 are those of the whole dataset; `train` (num_train,) int64 the rows on which clients may train.
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

    They are at most `MOST_SHOWN`, and fewer where clients draw their own examples and these have many classes.
    """
    clients = spread(holdings.num_clients, MOST_SHOWN)
    if not isinstance(holdings, Partition):
        work = len(clients) * num_classes + int(holdings.sizes(clients).sum()) // 256
        clients = clients[spread(len(clients), max(1, len(clients) * MOST_WORK_OF_A_RUN // max(work, MOST_WORK_OF_A_RUN)))]
    counts = [_count(labels[holdings.examples(client)], num_classes) for client in clients.tolist()]
    return clients, np.stack(counts)


def divergence(counts: Ints, available: Ints) -> Floats:
    """Jensen-Shannon divergence in bits, 0 (alike) to 1 (nothing in common), of the shares in each row from those of `available`.

    `counts` (num_clients, num_classes) -> (num_clients,). With m = (p + q) / 2 it is (KL(p || m) + KL(q || m)) / 2 (Lin,
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
    """0..num-1, or `most` of them in order: one from each of `most` equal stretches, always the same ones.

    It is not the first of each stretch, since classes often go round the clients in turn, and a constant step could meet one only.
    """
    if num <= most:
        return np.arange(num)
    ends = np.arange(most + 1) * num // most
    within = seeds.generator(0, "spread of clients").random(most)
    chosen: Ints = ends[:-1] + np.floor(within * np.diff(ends)).astype(np.int64)
    return chosen


def _examined(holdings: Holdings, num_classes: int) -> Ints:
    """Ids of the clients to look at."""
    clients = spread(holdings.num_clients, MOST_EXAMINED)
    if isinstance(holdings, Partition):
        return clients
    # a client that draws its examples takes about 15 microseconds for each class and 0.05 for each example
    work = len(clients) * num_classes + int(holdings.sizes(clients).sum()) // 256
    return clients[spread(len(clients), max(1, len(clients) * MOST_WORK // work))] if work > MOST_WORK else clients


def _by_chance(sizes: Ints, available: Ints) -> float:
    """Mean divergence (0..1) of clients of these sizes whose examples are drawn from all training images alike."""
    rng = seeds.generator(0, "mixes by chance")
    drawn = [rng.multivariate_hypergeometric(available, size) for size in sizes[spread(len(sizes), NUM_BY_CHANCE)].tolist()]
    return float(divergence(np.stack(drawn), available).mean())


def _count(labels: Ints, num_classes: int) -> Ints:
    return np.bincount(labels, minlength=num_classes)
