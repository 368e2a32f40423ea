"""The common part of algorithms that treat the two factors of LoRA adapters differently."""

import numpy as np
import torch

from flora_hpc.algorithms._algorithm import Setting
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
    left, values, right = left[:, :rank], values[:rank], right[:rank]
    largest = np.abs(left.numpy()).argmax(0)
    signs = torch.from_numpy(np.where(left.numpy()[largest, np.arange(rank)] < 0, -1.0, 1.0))
    return left * signs, values, signs[:, None] * right
