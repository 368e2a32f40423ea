"""The common part of algorithms that treat the two factors of LoRA adapters differently."""

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
