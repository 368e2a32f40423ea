"""Sources of labelled images: a file each, and torchvision's in one table."""

from flora_hpc.data.datasets import _torchvision

TABLE = _torchvision.members()
