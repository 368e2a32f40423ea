"""What your own method, partitioner, dataset or algorithm is written with; docs/own-parts.md shows one of each."""

from flora_hpc.algorithms._algorithm import (
    Algorithm,
    Combine,
    CombineRows,
    Ended,
    LayerMeans,
    Local,
    LocalStep,
    Now,
    Pruning,
    Server,
    Sharing,
    Transform,
)
from flora_hpc.algorithms._algorithm import Setting as AlgorithmSetting
from flora_hpc.clip.steady import row_sums
from flora_hpc.data.holdings import Partitioner, PartitionOptions
from flora_hpc.data.images import Dataset, DatasetOptions, Images, assemble
from flora_hpc.errors import UserError
from flora_hpc.methods._method import Costs, Method, Portions, Setting, cosine_scores, describe, fixed, uniform
from flora_hpc.plugins import BaseOptions

__all__ = [
    "Algorithm",
    "AlgorithmSetting",
    "BaseOptions",
    "Combine",
    "CombineRows",
    "Costs",
    "Dataset",
    "DatasetOptions",
    "Ended",
    "Images",
    "LayerMeans",
    "Local",
    "LocalStep",
    "Method",
    "Now",
    "PartitionOptions",
    "Partitioner",
    "Portions",
    "Pruning",
    "Server",
    "Setting",
    "Sharing",
    "Transform",
    "UserError",
    "assemble",
    "cosine_scores",
    "describe",
    "fixed",
    "row_sums",
    "uniform",
]
