"""Label flip: attackers train with wrong classes, the last one for the first and so on (Biggio et al., ICML 2012)."""

from flora_hpc.attacks._attack import Attack, AttackOptions


class Options(AttackOptions):
    """Who attacks."""


def build(options: Options) -> Attack:
    """Class c becomes num_classes - 1 - c. What they send is an honest update from these labels."""
    return Attack(labels=lambda labels, num_classes: num_classes - 1 - labels)
