"""Parts of a round that do not go together, each in one sentence with the cure."""

import torch

from flora_hpc.algorithms import _rows
from flora_hpc.algorithms._algorithm import Setting
from flora_hpc.attackers import Attackers
from flora_hpc.config import ClientConfig, Config
from flora_hpc.federation import Federation
from flora_hpc.methods._method import Method


def misfit(federation: Federation, config: Config, setting: Setting) -> str | None:
    """Why the parts do not go together, in one sentence with the cure; None when they do."""
    local, server = federation.local, federation.server
    if missing := sorted(set(local.needs) - set(server.sends)):
        return (
            f"algorithm: its local part needs the server's {' and '.join(missing)}, which this server part does not send; "
            "take local and server from the same algorithm"
        )
    if missing := sorted(set(server.takes) - set(local.sends) - set(federation.combine.sends)):
        return (
            f"algorithm: its server part needs the clients' {' and '.join(missing)}, which nothing sends; "
            "take local and server from the same algorithm"
        )
    if federation.combine.by_norm and not all(roles.sent.is_all for roles in federation.roles):
        return "combine: its weights are norms of B A, but clients do not send all of A and B; leave the sharing part out"
    if (fault := misfit_of_rows(federation, config.cohort.num_clients(setting.num_registered))) is not None:
        return fault
    if federation.attackers is not None and (fault := misfit_of_attack(federation, federation.attackers, setting)) is not None:
        return fault
    if local.loss is not None and setting.paired:
        return "algorithm: its loss needs classes, but in these data every image has a caption of its own; take another algorithm"
    if local.loss is not None and config.client.loss != "classification":
        return (
            f"client.loss: {config.client.loss} would be replaced, since the algorithm has its own; set client.loss: classification"
        )
    reason = remembering(federation, config.client)
    section = "algorithm" if config.sharing is None else "sharing"
    if len(federation.roles) > 1 and reason is not None:
        return f"{section}: other tensors are trained from round to round, but {reason}; leave one of the two out"
    if federation.num_private and (local.memory or local.sends or local.personal):
        own = (*local.sends, *local.memory)
        what = "trains a second model" if local.personal else f"has {own[0]} of every trained number"
        return f"{section}: some tensors stay with their client, but the local part {what}; leave one of the two out"
    return None


def misfit_of_rows(federation: Federation, num_participants: int) -> str | None:
    """Why a combine part that needs all updates does not go with the rest, in one sentence; None when it does."""
    if federation.rule is None:
        return None
    if sends := federation.local.sends:
        return (
            f"combine: its rule compares updates, but the local part also sends {' and '.join(sends)}, of which the server takes "
            "a mean that no rule protects; take another local part, or a combine part of sums"
        )
    return federation.rule.fault(num_participants)


def misfit_of_attack(federation: Federation, attacked: Attackers, setting: Setting) -> str | None:
    """Why an attack does not go with the parts or the data, in one sentence; None when it does."""
    trigger = attacked.attack.trigger
    if (attacked.attack.labels is not None or trigger is not None) and setting.paired:
        return f"attack.name: {attacked.name} changes classes, but here every image has a caption of its own; take another attack"
    if trigger is not None and setting.num_classes is not None and trigger.target >= setting.num_classes:
        return (
            f"attack.target: there is no class {trigger.target:,}, since the {setting.num_classes:,} classes count from 0; lower it"
        )
    if attacked.attack.against is not None and federation.rule is None:
        return (
            f"attack.name: {attacked.name} needs the updates of all honest clients, which exact sums do not have; set "
            "combine.name: trimmed_mean with combine.fraction: 0 for a mean, or take another combine part or attack"
        )
    return None


def remembering(federation: Federation, config: ClientConfig) -> str | None:
    """What remembers or sends a number for each trained number, in words; None where nothing does."""
    local, server, transform = federation.local, federation.server, federation.transform
    remembers = {
        "the local part remembers every trained number": bool(local.memory),
        "the local part trains a second model": local.personal is not None,
        "the server sends every trained number": bool(server.sends),
        "the transform part remembers every sent number": transform is not None and bool(transform.memory),
        "the server part remembers every number": server.init(torch.zeros(1)) is not None,
        "client.optimizer_state: keep remembers every trained number": any(
            name.startswith("optimizer.") for name in federation.memory_widths(config)
        ),
    }
    return next((text for text, applies in remembers.items() if applies), None)


def misfit_of_portions(federation: Federation, method: Method, server: str) -> str | None:
    """Why the parts do not go with a method whose clients hold different portions of the adapter; None when they do.

    The server pads an update with zeros minus its adapter where a client holds nothing, which only a plain mean can mean.
    """
    if method.portions is None:
        return None
    reasons = {
        "the transform part would encode the padding": federation.transform is not None,
        "the combine part would rescale the padding": federation.combine.prepare is not None,
        "the combine part would choose ranks of the padding": federation.combine.by_rank is not None,
        "the combine part would compare the padding": federation.rule is not None,
        "clients send rows of numbers that they do not hold": federation.local.end is not None,
        "the server part would step along the padding": server != "fedavg",
    }
    reason = next((text for text, applies in reasons.items() if applies), None)
    if reason is None:
        return None
    return (
        f"algorithm: this method's clients hold different portions of the adapter, and {reason}; take fedavg, or method.name: flora"
    )


def misfit_of_sent_ranks(federation: Federation, method: Method) -> str | None:
    """Why clients cannot send some ranks alone; None when they can, or need not."""
    if federation.combine.by_rank is None:
        return None
    if not method.layers:
        return (
            "algorithm: each client sends some ranks of its layers alone, and this method names no layer with factors; "
            "set method.name: flora, or take another algorithm"
        )
    if federation.transform is not None:
        return "transform: it would encode the ranks that a client does not send; leave it out, or take algorithm.name: rolora"
    return None


def misfit_of_pruning(federation: Federation, method: Method, config: Config) -> str | None:
    """Why clients cannot drop ranks; None when they can, or need not."""
    if federation.local.pruning is None:
        return None
    section = "algorithm" if config.local is None else "local"
    portions = method.portions
    if portions is None or portions.ranks is None or portions.of_ranks is None or not method.layers:
        return (
            f"{section}.prune: each client drops ranks of its own, and method {config.method.name} has no ranks of clients; leave "
            "it out, or set method.name: feddylora, whose min_rank may equal its max_rank"
        )
    if not all(roles.trained.is_all and roles.sent.is_all for roles in federation.roles):
        return f"{section}.prune: clients drop ranks of both A and B, but do not send all of them; leave it or the sharing part out"
    if config.evaluate.per_rank:
        return f"evaluate.per_rank: the ranks of clients change from round to round with {section}.prune; leave one of the two out"
    return None


def misfit_of_ranks(method: Method, config: Config) -> str | None:
    """Why ranks cannot be tested one by one; None when they can, or it is not asked for."""
    has_ranks = method.portions is not None and method.portions.ranks is not None
    if has_ranks or not config.evaluate.per_rank:
        return None
    return (
        f"evaluate.per_rank: tests the adapter cut to each rank of the clients, and with method {config.method.name} all clients "
        "have one rank; leave it out, or set method.name: feddylora"
    )


def warn_of_unequal_steps(federation: Federation, fewest: int, most: int) -> tuple[str, ...]:
    """A warning where clients make different numbers of steps, and a control variate weighs a client's steps equally."""
    if not federation.local.sums_gradients or fewest == most:
        return ()
    return (
        f"clients make {fewest:,} to {most:,} steps in a round, and the algorithm's control variates assume equal numbers; "
        "it may diverge where they differ much",
    )


def warn_of_attackers(federation: Federation, config: Config) -> tuple[str, ...]:
    """A warning where more clients attack than the combine part expects; none for a mean, which expects no attacker."""
    section = "algorithm" if config.combine is None else "combine"
    options = config.combine or config.algorithm
    expects = isinstance(options, _rows.AttackedOptions) or getattr(options, "mix", "none") != "none"
    if federation.rule is None or federation.attackers is None or not expects or not (most := getattr(options, "fraction", 0.0)):
        return ()
    mask = federation.attackers.mask
    if mask.mean() <= most:
        return ()
    return (
        f"attack.fraction: {int(mask.sum()):,} of {len(mask):,} clients attack, a share of {mask.mean():.3g}, and {options.name} "
        f"expects at most {most:g}, so that it protects no longer; lower attack.fraction, or raise {section}.fraction",
    )
