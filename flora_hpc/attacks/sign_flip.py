"""Sign flip: attackers send the negative of their update."""

from pydantic import Field

from flora_hpc.attacks._attack import Attack, AttackOptions


class Options(AttackOptions):
    """The length."""

    scale: float = Field(1.0, gt=0, allow_inf_nan=False, description="length of what is sent, in lengths of the update")


def build(options: Options) -> Attack:
    """It undoes what as many honest clients do."""
    return Attack(lambda update, numbers: -options.scale * update)
