"""Build the parts of a round for one run: what the algorithm defines, what the user named instead, and FedAvg's for the rest."""

from collections.abc import Mapping
from typing import Any, cast

from flora_hpc import factors, plugins, tried
from flora_hpc.algorithms._algorithm import Algorithm, Setting, Sharing
from flora_hpc.attackers import draw
from flora_hpc.attacks._attack import AttackOptions
from flora_hpc.config import PARTS, Config
from flora_hpc.errors import UserError
from flora_hpc.federation import Federation
from flora_hpc.methods._method import Method
from flora_hpc.misfits import misfit, misfit_of_portions, misfit_of_pruning, misfit_of_ranks, misfit_of_sent_ranks, remembering
from flora_hpc.plugins import BaseOptions
from flora_hpc.roles import roles_of


def build(config: Config, method: Method, setting: Setting) -> Federation:
    """Build the parts that `config` names. Raises UserError for parts that do not go together."""
    fedavg = plugins.build("algorithms", plugins.member("algorithms", "fedavg").Options(name="fedavg"), Algorithm, setting)
    algorithm = plugins.build("algorithms", config.algorithm, Algorithm, setting)
    own = [part for part in PARTS if getattr(algorithm, part) is not None]
    origins = dict.fromkeys(PARTS, ("fedavg", fedavg)) | dict.fromkeys(own, (config.algorithm.name, algorithm))
    warnings, names = list(algorithm.warnings), [config.algorithm.name]
    for part in PARTS:
        options: BaseOptions | None = getattr(config, part)
        if options is not None:
            other = plugins.build("algorithms", options, Algorithm, setting._replace(section=part))
            check_has(other, part, options.name)
            origins[part] = options.name, other
            warnings += [text for text in other.warnings if text not in warnings]
            names.append(f"{part} of {options.name}")
    check_together(origins)
    parts: dict[str, Any] = {part: getattr(whole, part) for part, (_, whole) in origins.items()}
    sharing: Sharing = parts.pop("sharing")
    roles = roles_of(sharing, method, "algorithm" if config.sharing is None else "sharing")
    attacked = None
    if config.attack is not None:
        attacked = draw(cast(AttackOptions, config.attack), config.seed, setting.num_registered)
        names.append(f"attack {config.attack.name} by {int(attacked.mask.sum()):,} of {setting.num_registered:,} clients")
    by_holder = parts["combine"].by_holder and method.portions is not None
    if parts["combine"].by_holder and not by_holder:
        warnings.append(
            f"algorithm: with method {config.method.name} every client holds all numbers, so the mean over holders is the mean; "
            "take method.name: feddylora for clients of different ranks"
        )
    layered = factors.Layered(", ".join(names), roles, parts["combine"], method, config)
    federation = Federation(
        layered.name,
        setting.num_registered,
        roles,
        attackers=attacked,
        warnings=tuple(warnings),
        by_holder=by_holder,
        merged=layered.merged(setting.num_registered),
        **parts,
    )
    fault = (
        misfit(federation, config, setting)
        or misfit_of_portions(federation, method, origins["server"][0])
        or misfit_of_sent_ranks(federation, method)
        or misfit_of_pruning(federation, method, config)
        or misfit_of_ranks(method, config)
        or layered.misfit(remembering(federation, config.client))
        or layered.misfit_of_cross_term()
    )
    if fault is not None:
        raise UserError(fault)
    tried.check(federation.local, federation.transform, federation.combine, federation.server)
    return federation


def check_together(origins: Mapping[str, tuple[str, Algorithm]]) -> None:
    """Raise UserError where an algorithm's parts that go `together` only are mixed with others.

    `origins` has, for each part, the name of the algorithm that it comes from, and that algorithm.
    """
    for name, algorithm in dict(origins.values()).items():
        is_used = any(origins[part][0] == name for part in algorithm.together)
        for part in algorithm.together if is_used else ():
            expected = name if getattr(algorithm, part) is not None else "fedavg"
            if origins[part][0] != expected:
                *first, last = algorithm.together
                whole = f"{', '.join(first)} and {last}"
                raise UserError(
                    f"{part}: the {whole} parts of {name} go together only, and here {part} is that of {origins[part][0]}; "
                    f"set algorithm: {name} and leave {whole} out"
                )


def check_has(algorithm: Algorithm, part: str, name: str) -> None:
    """Raise UserError where the algorithm `name` leaves the part that the user asked for to FedAvg."""
    if getattr(algorithm, part) is None:
        *first, last = [other for other in PARTS if getattr(algorithm, other) is not None]
        has = f"{', '.join(first)} and {last}" if first else last
        raise UserError(
            f"{part}.name: {name} has no {part} part of its own, only {has}; name another algorithm, see flora-hpc list algorithms"
        )
