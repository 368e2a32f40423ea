"""The first local step of a round, in which all clients still hold the same adapter: what they share is computed once.

With one adapter there is one set of features of the classes, T. The text tower runs forwards once for all clients of a group, and
backwards for each (`clip.alike`); that changes no bit. For crowds there is a shorter way: a client's gradient is J^T vec(dL/dT),
where J is the Jacobian of T by the trained numbers and dL/dT (num_classes, embed_dim) is what the client's images ask of T. J is
computed once, row by row, by all ranks together; then each client takes one product. It pays for more clients than T has numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from flora_hpc.clip import frozen
from flora_hpc.comm.communicator import Communicator
from flora_hpc.errors import UserError
from flora_hpc.methods._method import Method

MAX_BYTES = 2**30  # of a Jacobian. Whether there is one decides bits, so this is the same on every machine
ROWS = 64  # of a Jacobian that are computed at once, and of a product with it


@dataclass(frozen=True)
class FirstStep:
    """What gives clients that start from one adapter their first gradient."""

    classes: torch.Tensor  # (1, num_classes, embed_dim), what the method knows of each class
    jacobian: torch.Tensor  # (num_classes * embed_dim, num_params)

    def by_params(self, asked: torch.Tensor) -> torch.Tensor:
        """Gradients by the classes (num_clients, num_classes, embed_dim) -> by the trained numbers (num_clients, num_params).

        Always as many rows at once, since their number may decide how a product is cut, and its bits.
        """
        parts = []
        for part in cut(asked.flatten(1)):
            padded = F.pad(part, (0, 0, 0, ROWS - len(part)))
            parts.append(frozen.product(padded, self.jacobian.t(), None)[: len(part)])
        return torch.cat(parts)


def why_not(method: Method) -> str | None:
    """Why clients share nothing of their captions in their first step; None when they do."""
    reasons = {
        "each client sees the pixels of its own images": method.sees == "pixels",
        "each client encodes the captions of its own images": method.paired,
        "what is trained encodes no captions": not method.text_positions,
        "each client drops out other numbers": method.noisy,
        "clients hold different parts of the adapter": method.holds is not None,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def choose(wanted: str, method: Method, on_gpu: bool, num_clients: int, num_outputs: int, backward_flops: int) -> bool:
    """Whether `num_clients` of a round make their first step by a Jacobian; that never depends on the number of ranks.

    `num_outputs` are the numbers of T, `backward_flops` what one client's way back through the text tower takes. Raises UserError
    when a Jacobian is `wanted` and cannot be.
    """
    reason = why_not(method) or ("it is for CPUs so far" if on_gpu else None)
    if reason is None and 4 * num_outputs * method.num_params > MAX_BYTES:
        reason = f"its {num_outputs:,} x {method.num_params:,} numbers take more than a gibibyte"
    if wanted == "jacobian" and reason is not None:
        raise UserError(f"client.first_step: jacobian cannot be, since {reason}; leave it away")
    if wanted != "auto" or reason is not None:
        return wanted == "jacobian"
    spared = backward_flops - 2 * num_outputs * method.num_params  # by each client
    return num_clients * spared > num_outputs * backward_flops


def told(method: Method, by_jacobian: bool) -> str:
    """How the first step goes, for people."""
    if by_jacobian:
        return "one Jacobian of the captions' features for all clients, and a product for each"
    if (reason := why_not(method)) is not None:
        return f"as every other, since {reason}"
    return "captions are encoded once for all clients of a group, forwards"


def make(method: Method, adapter: torch.Tensor, comm: Communicator) -> FirstStep:
    """A Jacobian for clients that start from `adapter` (num_params,). All ranks of `comm` call this: each computes some rows."""
    with torch.no_grad():
        classes = method.classes(method.unpack(adapter[None]), None)
    places = cut(torch.arange(classes.numel()))
    mine = [rows(method, adapter, block, classes.shape) for block in places[comm.rank :: comm.size]]
    if comm.size == 1:
        return FirstStep(classes, torch.cat(mine))
    found = comm.allgather(b"".join(part.numpy().tobytes() for part in mine))
    jacobian = adapter.new_empty(classes.numel(), method.num_params)
    for rank, data in enumerate(found):
        if data:
            jacobian[torch.cat(places[rank :: comm.size])] = torch.frombuffer(bytearray(data), dtype=adapter.dtype).view(
                -1, method.num_params
            )
    return FirstStep(classes, jacobian)


def rows(method: Method, adapter: torch.Tensor, places: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Rows (n, num_params) of the Jacobian at `places` (n,) of T, which has this shape (1, num_classes, embed_dim)."""
    leaf = adapter.expand(len(places), -1).detach().requires_grad_()
    classes = method.classes(method.unpack(leaf), None)
    units = (torch.arange(shape.numel()) == places[:, None]).to(adapter.dtype).view(-1, *shape[1:])
    return torch.autograd.grad(classes, leaf, units)[0]


cut: Callable[[torch.Tensor], tuple[torch.Tensor, ...]] = partial(torch.split, split_size_or_sections=ROWS)  # in blocks of rows
