"""The first local step of a round, in which all clients still hold the same adapter: what they share is computed once.

With one adapter there is one set of features of the classes, T. The text tower runs forwards once for all clients of a group, and
backwards for each (`clip.alike`); that changes no bit. For crowds there is a shorter way: a client's gradient is J^T vec(dL/dT),
where J is the Jacobian of T by the trained numbers and dL/dT (num_classes, embed_dim) is what the client's images ask of T. J is
computed once by all ranks together, caption by caption; then each client takes one product. That pays for some hundred clients.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F

from flora_hpc.clip import frozen
from flora_hpc.clip.alike import back
from flora_hpc.comm.communicator import Communicator
from flora_hpc.errors import UserError
from flora_hpc.methods._method import Method

MAX_BYTES = 2**30  # of a Jacobian. Whether there is one decides bits, so this is the same on every machine
ROWS = 256  # of a Jacobian that are computed at once
CLIENTS = 64  # in a product with it


@dataclass(frozen=True)
class FirstStep:
    """What gives clients that start from one adapter their first gradient."""

    classes: torch.Tensor  # (1, num_classes, embed_dim), what the method knows of each class
    jacobian: torch.Tensor  # (num_classes * embed_dim, num_params)

    def gradient(self, loss: torch.Tensor, classes: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
        """That of losses (num_clients,) by the numbers (num_clients, num_params), on which they depend by `classes` and `leaf`."""
        by_classes, direct = torch.autograd.grad(loss.sum(), (classes, leaf), allow_unused=True)
        gradient = self.by_params(by_classes)
        return gradient if direct is None else gradient.add_(direct)

    def by_params(self, by_classes: torch.Tensor) -> torch.Tensor:
        """Gradients by the classes (num_clients, num_classes, embed_dim) -> by the trained numbers (num_clients, num_params).

        Always as many clients at once, since their number may decide how a product is cut, and its bits.
        """
        parts = []
        for part in by_classes.flatten(1).tensor_split(list(range(CLIENTS, len(by_classes), CLIENTS))):
            padded = F.pad(part, (0, 0, 0, CLIENTS - len(part)))
            parts.append(frozen.product(padded, self.jacobian.t(), None)[: len(part)])
        return torch.cat(parts)


def why_not(method: Method) -> str | None:
    """Why clients share nothing of their captions in their first step; None when they do."""
    reasons = {
        "each client sees the pixels of its own images": method.sees == "pixels",
        "each client encodes the captions of its own images": method.paired,
        "what is trained encodes no captions": not method.text_positions,
        "the text tower's own code runs": not method.positions_alone,
        "each client drops out other numbers": method.noisy,
        "clients hold different parts of the adapter": method.holds is not None,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def choose(wanted: str, method: Method, on_gpu: bool, num_clients: int, flops: int) -> bool:
    """Whether `num_clients` of a round make their first step by a Jacobian; that never depends on the number of ranks.

    What ranks send each other is left out of the count for this reason; `plan` tells it.
    The way back of one position through the text tower takes so many `flops`. Raises UserError when a Jacobian is `wanted` and
    cannot be.
    """
    num_outputs = prod(method.text_shape)
    reason = why_not(method) or ("it is for CPUs so far" if on_gpu else None)
    if reason is None and 4 * num_outputs * method.num_params > MAX_BYTES:
        reason = f"its {num_outputs:,} x {method.num_params:,} numbers take more than a gibibyte"
    if wanted == "jacobian" and reason is not None:
        raise UserError(f"client.first_step: jacobian cannot be, since {reason}; leave it away")
    if wanted != "auto" or reason is not None:
        return wanted == "jacobian"
    spared = flops * method.text_positions - 2 * num_outputs * method.num_params  # by each client
    return num_clients * spared > flops * method.positions_alone * method.text_shape[1]


def num_bytes(method: Method, by_jacobian: bool) -> int:
    """What a rank keeps of it during a round."""
    return method.payload_bytes * prod(method.text_shape) if by_jacobian else 0


def sent_bytes(method: Method, by_jacobian: bool, num_ranks: int) -> int:
    """What all ranks together send in a round, so that each has the rows that others made; the meter counts the same."""
    return num_bytes(method, by_jacobian) if num_ranks > 1 else 0


def describe(method: Method, by_jacobian: bool) -> str:
    """How the first step goes, for people."""
    if by_jacobian:
        return "one Jacobian of the captions' features for all clients, and a product for each"
    if (reason := why_not(method)) is not None:
        return f"as every other, since {reason}"
    return "captions are encoded once for all clients of a group, forwards"


def make(
    method: Method, adapter: torch.Tensor, comm: Communicator, computing: Callable[[], AbstractContextManager[None]] = nullcontext
) -> FirstStep:
    """A Jacobian for clients that start from `adapter` (num_params,). All ranks of `comm` call this: each computes some rows.

    A caption's features depend on that caption alone, so each is encoded by itself: with ten captions, a quarter of the work. What
    is no exchange between ranks happens inside `computing()`.
    """
    with computing():
        with torch.no_grad():
            classes = method.classes(method.unpack(adapter[None]), None)
        _, num_classes, width = classes.shape
        parts = [(caption, start) for caption in range(num_classes) for start in range(0, width, ROWS)]
        blocks = torch.arange(num_classes * width).view(num_classes, width)
        jacobian = adapter.new_empty(num_classes * width, method.num_params)
        local_rows = places(parts[comm.rank :: comm.size], blocks)
        for caption, start in parts[comm.rank :: comm.size]:
            jacobian[blocks[caption, start : start + ROWS]] = rows(method, adapter, caption, start, width)
    if comm.size > 1:
        shares = comm.allgather(jacobian[local_rows].numpy().tobytes())
        with computing():
            for rank, data in enumerate(shares):
                if data and rank != comm.rank:
                    theirs = torch.frombuffer(bytearray(data), dtype=adapter.dtype).view(-1, method.num_params)
                    jacobian[places(parts[rank :: comm.size], blocks)] = theirs
                shares[rank] = b""  # as large as the Jacobian, all together
    return FirstStep(classes, jacobian)


def places(parts: list[tuple[int, int]], blocks: torch.Tensor) -> torch.Tensor:
    """The rows (n,) int64 of the Jacobian that `parts`, captions and where they start in their features, stand for."""
    return torch.cat([blocks[0, :0], *(blocks[caption, start : start + ROWS] for caption, start in parts)])


def rows(method: Method, adapter: torch.Tensor, caption: int, start: int, width: int) -> torch.Tensor:
    """Rows (n, num_params) of the Jacobian: at most ROWS numbers, from `start`, of a caption's features (width,)."""
    units = torch.eye(width, dtype=adapter.dtype, device=adapter.device)[start : start + ROWS]
    leaf = adapter.expand(len(units), -1).detach().requires_grad_()
    classes = method.classes(method.unpack(leaf), None, torch.tensor([[caption]]))
    return back(classes, units[:, None], [leaf])[0]
