"""The roles of trained tensors in a round: which are sent, which stay with their client, and which are frozen.

tensors of the adapter     A1   B1   A2   B2          (num_params,)
role                       sent own  frozen own
trained numbers            A1   B1   B2               (num_trained,): clients train these, the rest is the server's
of these, shared           A1                         (num_shared,): updates, sums over clients, bytes
of these, private               B1   B2               (num_private,): a client's memory
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from typing import Any

import torch

from flora_hpc.algorithms._algorithm import ROLES, Role, Sharing
from flora_hpc.clip.alike import are_alike
from flora_hpc.errors import UserError
from flora_hpc.methods._method import Method, Noise, Tensors


@dataclass(frozen=True)
class Columns:
    """Some of the numbers of a flat tensor (..., total): slices in ascending order."""

    slices: tuple[slice, ...]
    total: int

    def __len__(self) -> int:
        return sum(part.stop - part.start for part in self.slices)

    @property
    def is_all(self) -> bool:
        """Whether these are all numbers."""
        return len(self) == self.total

    def take(self, flat: torch.Tensor) -> torch.Tensor:
        """The numbers (..., n) of `flat` (..., total): `flat` itself where these are all, a view where one slice has them."""
        if self.is_all:
            return flat
        parts = [flat[..., part] for part in self.slices]
        return parts[0] if len(parts) == 1 else torch.cat([flat[..., :0], *parts], -1)

    def put(self, flat: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """A copy of `flat` (..., total) in which `numbers` (..., n) take these places; `numbers` itself where these are all."""
        if self.is_all:
            return numbers
        result = flat.clone()
        sizes = [part.stop - part.start for part in self.slices]
        for part, values in zip(self.slices, torch.split(numbers, sizes, -1), strict=True):
            result[..., part] = values
        return result


def select(sizes: Sequence[int], chosen: Sequence[bool]) -> Columns:
    """The numbers of the tensors that are `chosen` (n,), of tensors with these `sizes` (n,) that lie one behind the other."""
    slices: list[slice] = []
    for start, size, is_chosen in zip(accumulate(sizes, initial=0), sizes, chosen, strict=False):
        if is_chosen and slices and slices[-1].stop == start:
            slices[-1] = slice(slices[-1].start, start + size)
        elif is_chosen:
            slices.append(slice(start, start + size))
    return Columns(tuple(slices), sum(sizes))


@dataclass(frozen=True)
class Roles:
    """The roles of all tensors of a method in one round."""

    frozen: frozenset[str]  # names of tensors
    trained: Columns  # of the adapter
    sent: Columns  # of the adapter: shared numbers, which clients receive and send
    own: Columns  # of the adapter: private numbers
    shared: Columns  # of the trained numbers: the same as `sent`
    private: Columns  # of the trained numbers: the same as `own`


def roles_of(sharing: Sharing, method: Method, section: str = "algorithm") -> tuple[Roles, ...]:
    """The roles in rounds 1, 2, ...; they repeat. Raises UserError where no tensor is shared, or a private one changes its role.

    `section` of the configuration names the algorithm whose part this is.
    """
    names, sizes = list(method.shapes), [prod(shape) for shape in method.shapes.values()]
    all_roles = []
    for number in range(1, sharing.period + 1):
        roles: list[Role] = ["frozen" if name in method.constants else sharing.role(name, number) for name in names]
        assert set(roles) <= set(ROLES), f"a role is one of {', '.join(ROLES)}"
        if set(names) - method.constants and "shared" not in roles:
            raise UserError(
                f"{section}.name: none of the trained tensors {_some(names)} is sent to the server in round {number}; "
                "share one of them"
            )
        all_roles.append(roles)
    for name, *of_rounds in zip(names, *all_roles, strict=True):
        if "private" in of_rounds and len(set(of_rounds)) > 1:
            first = next(number for number, role in enumerate(of_rounds, 1) if role != of_rounds[0])
            raise UserError(
                f"{section}.name: {name} is {of_rounds[0]} in round 1 and {of_rounds[first - 1]} in round {first}; "
                "make it private in all rounds, or in none"
            )

    def columns(roles: list[Role]) -> Roles:
        def of_adapter(*which: Role) -> Columns:
            return select(sizes, [role in which for role in roles])

        def of_trained(which: Role) -> Columns:
            return select(
                [size for size, role in zip(sizes, roles, strict=True) if role != "frozen"],
                [role == which for role in roles if role != "frozen"],
            )

        frozen = frozenset(name for name, role in zip(names, roles, strict=True) if role == "frozen")
        trained, sent, own = of_adapter("shared", "private"), of_adapter("shared"), of_adapter("private")
        return Roles(frozen, trained, sent, own, of_trained("shared"), of_trained("private"))

    return tuple(columns(roles) for roles in all_roles)


def _some(names: Sequence[str]) -> str:
    """A few names, for a message."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def freeze(method: Method, roles: Roles, adapter: torch.Tensor) -> Method:
    """The method that trains all but the frozen tensors, whose values are those of `adapter` (num_params,)."""
    if not roles.frozen:
        return method
    frozen = {name: tensor for name, tensor in method.unpack(adapter[None]).items() if name in roles.frozen}

    def with_frozen(tensors: Tensors) -> Tensors:
        num_clients = max((len(tensor) for tensor in tensors.values()), default=1)
        alike = num_clients == 1 or are_alike(*tensors.values())
        # copies beside tensors of different clients: a stride of 0 could lead to other kernels, and so to other bits
        return {
            **{
                name: tensor.expand(num_clients, *tensor.shape[1:])
                if alike
                else tensor.repeat(num_clients, *[1] * (tensor.dim() - 1))
                for name, tensor in frozen.items()
            },
            **tensors,
        }

    def classes(tensors: Tensors, noise: Noise, *caption_rows: Any, **options: Any) -> torch.Tensor:
        return method.classes(with_frozen(tensors), noise, *caption_rows, **options)

    def logits(tensors: Tensors, classes: torch.Tensor, inputs: torch.Tensor, noise: Noise) -> torch.Tensor:
        return method.logits(with_frozen(tensors), classes, inputs, noise)

    shapes = {name: shape for name, shape in method.shapes.items() if name not in roles.frozen}
    return replace(method, shapes=shapes, classes=classes, logits=logits, constants=method.constants - roles.frozen)
