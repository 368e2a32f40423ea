"""The common part of algorithms that treat the two factors of LoRA adapters differently."""

import numpy as np
import torch

from flora_hpc.algorithms._algorithm import LayerMeans, Setting
from flora_hpc.errors import UserError

A, B = (".lora_A", ".private_A"), (".lora_B", ".private_B")  # ends of the names of both factors; dual_lora has two adapters


def need_lora(name: str, setting: Setting) -> None:
    """Raise UserError unless the method trains low-rank adapters."""
    if not any(tensor.endswith(".lora_A") for tensor in setting.names):
        raise UserError(
            f"{setting.section}.name: {name} treats the A and B of LoRA adapters differently, and this method has none; "
            "set method.name: flora, or take another algorithm"
        )


def truncated_svd(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The `rank` largest singular values (rank,) of a matrix (out, in), left vectors (out, rank) and right ones (rank, in).

    The largest entry of each left vector is positive; of equal entries, the first one decides.
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return with_signs(left, values, right, rank)


def svd_of_mean(means: LayerMeans) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same of the mean product, with as many singular values as the adapter has ranks.

    Where the mean is a product of narrow stacks, L and R: with L = P S and R^T = Q T by QR, the values of L R are those of S T^T.
    """
    rank = len(means.a)
    if means.stacks is None:
        return truncated_svd(means.product, rank)
    basis, of_left = torch.linalg.qr(means.stacks[0])
    other_basis, of_right = torch.linalg.qr(means.stacks[1].T)
    left, values, right = torch.linalg.svd(of_left @ of_right.T)
    return with_signs(basis @ left[:, :rank], values, right[:rank] @ other_basis.T, rank)


def with_signs(
    left: torch.Tensor, values: torch.Tensor, right: torch.Tensor, rank: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first `rank` of a singular value decomposition, with the signs that `truncated_svd` says."""
    left, values, right = left[:, :rank], values[:rank], right[:rank]
    largest = np.abs(left.numpy()).argmax(0)
    signs = torch.from_numpy(np.where(left.numpy()[largest, np.arange(rank)] < 0, -1.0, 1.0))
    return left * signs, values, signs[:, None] * right
