"""The value that every source of image-caption pairs returns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from flora_hpc.data.images import Column, Images, Ints, Raw


@dataclass(frozen=True)
class Pairs:
    """Images in a fixed order, each with its caption."""

    captions: Sequence[str]
    pictures: Sequence[str]  # identity of each image; an image with several captions is in several pairs
    raw: Callable[[Sequence[int]], list[Raw]]
    where: Callable[[int], str]
    columns: Mapping[str, Column]
    stamp: Callable[[], str]
    left_out: Mapping[str, int] = field(default_factory=dict)  # reason -> number of dropped members of shards

    def images(self, labels: Ints) -> Images:
        columns = {name: (lambda values=values: values) for name, values in self.columns.items()}
        return Images(labels, self.raw, self.where, columns, self.stamp)
