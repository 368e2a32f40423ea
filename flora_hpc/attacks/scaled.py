"""Scaled: attackers send a multiple of their update, so that a mean is theirs."""

from pydantic import Field

from flora_hpc.attacks._attack import Attack, AttackOptions


class Options(AttackOptions):
    """The factor."""

    scale: float = Field(
        10.0, gt=0, allow_inf_nan=False, description="factor of the update; with the clients of a round, it replaces the mean"
    )


def build(options: Options) -> Attack:
    """The direction of their update is that of honest training."""
    return Attack(lambda update, numbers: options.scale * update)
