"""Datasets of labelled images: one file each, and one table for the datasets of torchvision."""

from flora_hpc.data.datasets import _torchvision

TABLE = _torchvision.members()
