"""What every source of image-caption pairs tells."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from flora_hpc.data.images import Column, Images, Ints, Raw


@dataclass(frozen=True)
class Pairs:
    """Images in a fixed order, each with its caption."""

    captions: Sequence[str]
    pictures: Sequence[str]  # what tells the images apart; one that has several captions is there as often
    raw: Callable[[Sequence[int]], list[Raw]]
    where: Callable[[int], str]
    columns: Mapping[str, Column]
    stamp: Callable[[], str]
    left_out: Mapping[str, int] = field(default_factory=dict)  # reason -> number of members of shards that belong to no pair

    def images(self, labels: Ints) -> Images:
        columns = {name: (lambda values=values: values) for name, values in self.columns.items()}
        return Images(labels, self.raw, self.where, columns, self.stamp)
