"""The parts of a round for one run: what the algorithm defines, what the user named instead, and FedAvg's parts for the rest."""

from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from flora_hpc import factors, plugins, tried
from flora_hpc.algorithms._algorithm import Algorithm, Combine, CombineRows, Local, Server, Setting, Sharing, Transform
from flora_hpc.attackers import Attackers, draw
from flora_hpc.attacks._attack import AttackOptions
from flora_hpc.config import PARTS, ClientConfig, Config
from flora_hpc.data.images import Ints
from flora_hpc.errors import UserError
from flora_hpc.factors import NOTHING_MERGED, Merged
from flora_hpc.methods._method import Method
from flora_hpc.optimizers import OPTIMIZERS
from flora_hpc.plugins import BaseOptions
from flora_hpc.roles import Roles, roles_of

BLOCK = 64  # clients whose masks are in memory at once


@dataclass(frozen=True)
class Federation:
    """The five parts of a round, and what follows from them."""

    name: str  # of the algorithm, and of the parts that were named instead of its own
    num_registered: int  # clients
    roles: tuple[Roles, ...]  # of the method's tensors in rounds 1, 2, ...; they repeat
    local: Local
    transform: Transform | None
    combine: Combine | CombineRows
    server: Server
    attackers: Attackers | None = None
    warnings: tuple[str, ...] = ()
    by_holder: bool = False  # whether numbers are averaged over the clients that hold them, and some clients hold a part only
    merged: Merged = NOTHING_MERGED  # what a client receives of a change of frozen weights

    def roles_in(self, number: int) -> Roles:
        """The roles of the method's tensors in round `number`, counted from 1."""
        return self.roles[(number - 1) % len(self.roles)]

    @property
    def num_private(self) -> int:
        """Trained numbers that stay with each client."""
        return len(self.roles[0].own)

    @property
    def payload_bytes(self) -> int:
        """Bytes of an update as float32, without any header; of the largest client and round, where they differ."""
        return 4 * max(len(roles.sent) for roles in self.roles)

    @property
    def rule(self) -> CombineRows | None:
        """The combine part where it needs the updates of all clients at once; None where it needs their sums."""
        return self.combine if isinstance(self.combine, CombineRows) else None

    @property
    def keeps_models(self) -> bool:
        """Whether clients have a model of their own: a private part, or one that they train beside the shared one."""
        return self.num_private > 0 or self.local.personal is not None

    def sent_numbers(self, method: Method, clients: Ints, number: int) -> Ints:
        """How many numbers of the adapter each of `clients` (n,) receives in round `number`: (n,) int64."""
        sent = self.roles_in(number).sent
        if sent.is_all:
            return method.bytes_of(clients) // 4
        if method.portions is None:
            return np.full(len(clients), len(sent), np.int64)
        parts = [sent.take(method.portions.mask(clients[start : start + BLOCK])).sum(1) for start in range(0, len(clients), BLOCK)]
        numbers: Ints = torch.cat([torch.zeros(0, dtype=torch.int64), *parts]).numpy()
        return numbers

    def received_numbers(self, method: Method, clients: Ints, number: int) -> Ints:
        """How many numbers of the adapter each of `clients` (n,) receives in round `number`: (n,) int64.

        New factors go down whole, also where clients train one of them only. Fresh ones follow from the seed.
        """
        if self.combine.fresh:
            return np.zeros(len(clients), np.int64)
        return method.bytes_of(clients) // 4 if self.combine.replaces else self.sent_numbers(method, clients, number)

    def message_bytes(self, number: int) -> int:
        """Bytes that a client receives in round `number` besides the adapter."""
        merged = self.merged.num_bytes if number > 1 else 0  # nothing is merged before the first round
        return 4 * len(self.server.sends) * len(self.roles_in(number).trained) + merged

    def extra_bytes(self, number: int) -> int:
        """Bytes that a client sends in round `number` besides its update."""
        return 4 * (len(self.local.sends) * len(self.roles_in(number).trained) + sum(self.combine.sends.values()))

    def channels(self, number: int) -> dict[str, int]:
        """The rows that are added up in round `number`, and the width of each; 0 for updates that are combined as rows."""
        roles = self.roles_in(number)
        holders = (
            {"held": len(roles.shared)} if self.by_holder else {}
        )  # the server knows what clients hold, so they send no such row
        sent = {"update": 0 if self.rule else len(roles.shared)} | holders | dict(self.combine.sends)
        return sent | dict.fromkeys(self.local.sends, len(roles.trained))

    def encoded_bytes(self, number: int) -> int | None:
        """Bytes of an encoded update in round `number`; None where updates are sent as they are.

        Where the bytes depend on the update, these are the bytes of zeros.
        """
        if self.transform is None:
            return None
        for device in ("meta", "cpu"):  # tensors without numbers cost nothing, but not every transform can take them
            row = torch.zeros(1, len(self.roles_in(number).shared), device=device)
            with suppress(NotImplementedError, RuntimeError) if device == "meta" else nullcontext():
                _, _, num_bytes = self.transform.apply(row, dict.fromkeys(self.transform.memory, row))
                if num_bytes.device.type == "cpu":
                    return int(num_bytes)
        raise AssertionError("encoded bytes lie on the CPU")

    def memory_widths(self, config: ClientConfig) -> dict[str, int]:
        """How many numbers a client remembers from one round to the next, by name."""
        roles = self.roles[0]
        num_trained, num_shared = len(roles.trained), len(roles.shared)
        widths = {f"local.{name}": num_trained for name in self.local.memory}
        if self.num_private:
            widths["private"] = self.num_private
        if self.local.personal is not None:
            widths["personal"] = num_trained
        if self.transform is not None:
            widths |= {f"transform.{name}": num_shared for name in self.transform.memory}
        if config.optimizer_state == "keep":
            parts = OPTIMIZERS[config.optimizer].init(torch.empty(1, num_trained, device="meta"), config)
            widths |= {f"optimizer.{i}": part.shape[1] for i, part in enumerate(parts)}
        return widths

    def memory(self, adapter: torch.Tensor, config: ClientConfig) -> dict[str, torch.Tensor]:
        """What a client remembers from one round to the next, as it is before its first round: name -> (width,) float32.

        `adapter` (num_params,) is the initial one.
        """
        parts = {"private": self.roles[0].own, "personal": self.roles[0].trained}
        return {
            name: parts[name].take(adapter).cpu() if name in parts else torch.zeros(width)
            for name, width in self.memory_widths(config).items()
        }


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
                    f"set algorithm: {name} and leave {whole} away"
                )


def check_has(algorithm: Algorithm, part: str, name: str) -> None:
    """Raise UserError where the algorithm `name` leaves the part that the user asked for to FedAvg."""
    if getattr(algorithm, part) is None:
        *first, last = [other for other in PARTS if getattr(algorithm, other) is not None]
        has = f"{', '.join(first)} and {last}" if first else last
        raise UserError(
            f"{part}.name: {name} has no {part} part of its own, only {has}; name another algorithm, see flora-hpc list algorithms"
        )


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
        return f"{section}: other tensors are trained from round to round, but {reason}; leave one of the two away"
    if federation.num_private and (local.memory or local.sends or local.personal):
        own = (*local.sends, *local.memory)
        what = "trains a second model" if local.personal else f"has {own[0]} of every trained number"
        return f"{section}: some tensors stay with their client, but the local part {what}; leave one of the two away"
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
    if attacked.attack.labels is not None and setting.paired:
        return f"attack.name: {attacked.name} changes classes, but here every image has a caption of its own; take another attack"
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


def warn_of_unequal_steps(federation: Federation, fewest: int, most: int) -> tuple[str, ...]:
    """A warning where clients make different numbers of steps, and a control variate weighs a client's steps equally."""
    if not federation.local.sums_gradients or fewest == most:
        return ()
    return (
        f"clients make {fewest:,} to {most:,} steps in a round, and the algorithm's control variates assume equal numbers; "
        "it may diverge where they differ much",
    )
