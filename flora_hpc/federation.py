"""The five parts of a round for one run, and what follows from them: bytes, rows, and what clients remember."""

from contextlib import nullcontext, suppress
from dataclasses import dataclass

import numpy as np
import torch

from flora_hpc import pruning
from flora_hpc.algorithms._algorithm import Combine, CombineRows, Local, Server, Transform
from flora_hpc.attackers import Attackers
from flora_hpc.attacks._attack import Trigger
from flora_hpc.config import ClientConfig
from flora_hpc.data.images import Ints
from flora_hpc.factors import NOTHING_MERGED, Merged
from flora_hpc.methods._method import Method
from flora_hpc.optimizers import OPTIMIZERS
from flora_hpc.roles import Roles

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
    def trigger(self) -> Trigger | None:
        """What attackers put on images; None without a backdoor."""
        return None if self.attackers is None else self.attackers.attack.trigger

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
            {"held": len(roles.shared)} if self.by_holder or self.combine.by_rank is not None else {}
        )  # the server knows what clients hold, so they send no such row
        norms = {"norms": len(roles.shared)} if self.combine.by_norm else {}  # the server computes them from what clients send
        sent = {"update": 0 if self.rule else len(roles.shared)} | holders | norms | dict(self.combine.sends)
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
        if self.local.pruning is not None:
            widths[pruning.MEMORY] = 1
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
