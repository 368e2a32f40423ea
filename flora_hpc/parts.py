"""What your own method, partitioner, dataset or aggregator is written with; docs/own-parts.md shows one of each."""

from flora_hpc.aggregators._aggregator import Aggregator
from flora_hpc.data.holdings import Partitioner, PartitionOptions
from flora_hpc.data.images import Dataset, DatasetOptions, Images, assemble
from flora_hpc.errors import UserError
from flora_hpc.methods._method import Method, Setting, cosine_scores, describe, fixed, uniform
from flora_hpc.plugins import BaseOptions

__all__ = [
    "Aggregator",
    "BaseOptions",
    "Dataset",
    "DatasetOptions",
    "Images",
    "Method",
    "PartitionOptions",
    "Partitioner",
    "Setting",
    "UserError",
    "assemble",
    "cosine_scores",
    "describe",
    "fixed",
    "uniform",
]
