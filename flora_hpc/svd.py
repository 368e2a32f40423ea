"""Singular value decompositions with signs that are the same every time."""

import numpy as np
import torch

Svd = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # left vectors (out, rank), values (rank,), right vectors (rank, in)


def truncated_svd(matrix: torch.Tensor, rank: int) -> Svd:
    """The `rank` largest singular values of a matrix (out, in), and their vectors.

    The largest entry of each left vector is positive; of equal entries, the first one decides.
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return with_signs(left, values, right, rank)


def with_signs(left: torch.Tensor, values: torch.Tensor, right: torch.Tensor, rank: int) -> Svd:
    """The first `rank` of a singular value decomposition, with the signs that `truncated_svd` says."""
    left, values, right = left[:, :rank], values[:rank], right[:rank]
    largest = np.abs(left.numpy()).argmax(0)
    signs = torch.from_numpy(np.where(left.numpy()[largest, np.arange(rank)] < 0, -1.0, 1.0))
    return left * signs, values, signs[:, None] * right
