"""The common part of algorithms that treat the two factors of LoRA adapters differently."""

import torch

from flora_hpc.algorithms._algorithm import LayerMeans, Setting
from flora_hpc.errors import UserError
from flora_hpc.svd import Svd, truncated_svd, with_signs

A, B = (".lora_A", ".private_A"), (".lora_B", ".private_B")  # ends of the names of both factors; dual_lora has two adapters


def need_lora(name: str, setting: Setting) -> None:
    """Raise UserError unless the method trains low-rank adapters."""
    if not any(tensor.endswith(".lora_A") for tensor in setting.names):
        raise UserError(
            f"{setting.section}.name: {name} treats the A and B of LoRA adapters differently, and this method has none; "
            "set method.name: flora, or take another algorithm"
        )


def svd_of_mean(means: LayerMeans) -> Svd:
    """`truncated_svd` of the mean product, with as many singular values as the adapter has ranks.

    Where the mean is a product of narrow stacks, L and R: with L = P S and R^T = Q T by QR, the values of L R are those of S T^T.
    """
    rank = len(means.a)
    if means.stacks is None:
        return truncated_svd(means.product, rank)
    basis, of_left = torch.linalg.qr(means.stacks[0])
    other_basis, of_right = torch.linalg.qr(means.stacks[1].T)
    left, values, right = torch.linalg.svd(of_left @ of_right.T)
    return with_signs(basis @ left[:, :rank], values, right[:rank] @ other_basis.T, rank)
