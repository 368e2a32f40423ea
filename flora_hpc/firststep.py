"""The first local step of a round: all clients hold the same adapter, so their common work is done once.

With one adapter there is one set of class features, T. The text tower runs forwards once for all clients of a group, and backwards
for each client (`clip.alike`); that changes no bit. For many clients there is a shorter way: a client's gradient is
J^T vec(dL/dT), where J is the Jacobian of T by the trained numbers, and dL/dT (num_classes, embed_dim) is the gradient of the
client's loss by T. All ranks together compute J once, caption by caption; each client then takes one product. That pays from some
hundred clients on.
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

MAX_BYTES = 2**30  # of a Jacobian; the same on every machine, since bits depend on whether there is a Jacobian
ROWS = 256  # of a Jacobian, computed in one batch
CLIENTS = 64  # in one product with a Jacobian


@dataclass(frozen=True)
class FirstStep:
    """Computes the first gradient of clients that start from the same adapter."""

    classes: torch.Tensor  # (1, num_classes, embed_dim), the method's class features
    jacobian: torch.Tensor  # (num_classes * embed_dim, num_params)

    def gradient(self, loss: torch.Tensor, classes: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
        """Gradient (num_clients, num_params) of losses (num_clients,), which depend on the numbers by `classes` and `leaf`."""
        by_classes, direct = torch.autograd.grad(loss.sum(), (classes, leaf), allow_unused=True)
        gradient = self.by_params(by_classes)
        return gradient if direct is None else gradient.add_(direct)

    def by_params(self, by_classes: torch.Tensor) -> torch.Tensor:
        """Gradients by the classes (num_clients, num_classes, embed_dim) -> by the trained numbers (num_clients, num_params).

        Each product has CLIENTS clients (padded), since this number may decide how the product is cut, and so its bits.
        """
        parts = []
        for part in by_classes.flatten(1).tensor_split(list(range(CLIENTS, len(by_classes), CLIENTS))):
            padded = F.pad(part, (0, 0, 0, CLIENTS - len(part)))
            parts.append(frozen.product(padded, self.jacobian.t(), None)[: len(part)])
        return torch.cat(parts)


def why_not(method: Method, has_private: bool = False) -> str | None:
    """The reason why clients cannot share the features of captions in their first step; None when they can.

    `has_private` tells whether some trained tensors stay with each client.
    """
    reasons = {
        "each client sees the pixels of its own images": method.sees == "pixels",
        "each client encodes the captions of its own images": method.paired,
        "what is trained encodes no captions": not method.costs.text_positions,
        "the text tower's own code runs": not method.costs.positions_alone,
        "each client drops out other numbers": method.noisy,
        "clients hold different parts of the adapter": method.portions is not None,
        "each client keeps a part of the adapter": has_private,
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def choose(requested: str, method: Method, on_gpu: bool, num_clients: int, flops: int, has_private: bool = False) -> bool:
    """Decide whether the `num_clients` clients of a round make their first step by a Jacobian.

    The answer never depends on the number of ranks, so the bytes that ranks send each other are not counted; `plan` shows them.
    `flops` is the cost of the backward pass of one position through the text tower. Raises UserError when a Jacobian is
    `requested` and impossible.
    """
    costs = method.costs
    num_outputs = prod(costs.text_shape)
    reason = why_not(method, has_private) or ("it is for CPUs so far" if on_gpu else None)
    if reason is None and 4 * num_outputs * method.num_trained > MAX_BYTES:
        reason = f"its {num_outputs:,} x {method.num_trained:,} numbers take more than a gibibyte"
    if requested == "jacobian" and reason is not None:
        raise UserError(f"client.first_step: jacobian cannot be, since {reason}; leave it out")
    if requested != "auto" or reason is not None:
        return requested == "jacobian"
    saved_flops = flops * costs.text_positions - 2 * num_outputs * method.num_trained  # by each client
    return num_clients * saved_flops > flops * costs.positions_alone * costs.text_shape[1]


def num_bytes(method: Method, by_jacobian: bool) -> int:
    """Bytes of the Jacobian that a rank keeps during a round."""
    return method.payload_bytes * prod(method.costs.text_shape) if by_jacobian else 0


def sent_bytes(method: Method, by_jacobian: bool, num_ranks: int) -> int:
    """Bytes that all ranks together send in a round, so that each rank has all rows; the meter counts the same."""
    return num_bytes(method, by_jacobian) if num_ranks > 1 else 0


def describe(method: Method, by_jacobian: bool, has_private: bool = False) -> str:
    """Describe how the first step is computed, for people."""
    if by_jacobian:
        return "one Jacobian of the captions' features for all clients, and a product for each"
    if (reason := why_not(method, has_private)) is not None:
        return f"as every other, since {reason}"
    return "captions are encoded once for all clients of a group, forwards"


def make(
    method: Method, adapter: torch.Tensor, comm: Communicator, computing: Callable[[], AbstractContextManager[None]] = nullcontext
) -> FirstStep:
    """Compute the Jacobian at `adapter` (num_params,). All ranks of `comm` call this: each computes some rows.

    A caption's features depend on that caption alone, so each caption is encoded by itself: with ten captions, a quarter of the
    work. All work but the exchange between ranks happens inside `computing()`.
    """
    with computing():
        with torch.no_grad():
            classes = method.classes(method.unpack(adapter[None]), None)
        _, num_classes, width = classes.shape
        parts = [(caption, start) for caption in range(num_classes) for start in range(0, width, ROWS)]
        blocks = torch.arange(num_classes * width).view(num_classes, width)
        jacobian = adapter.new_empty(num_classes * width, method.num_params)
        local_rows = row_numbers(parts[comm.rank :: comm.size], blocks)
        for caption, start in parts[comm.rank :: comm.size]:
            jacobian[blocks[caption, start : start + ROWS]] = compute_rows(method, adapter, caption, start, width)
        local_share = jacobian[local_rows].numpy().tobytes() if comm.size > 1 else b""
    if comm.size > 1:
        shares = comm.allgather(local_share)
        del local_share
        with computing():
            for rank, data in enumerate(shares):
                if data and rank != comm.rank:
                    rows = torch.frombuffer(bytearray(data), dtype=adapter.dtype).view(-1, method.num_params)
                    jacobian[row_numbers(parts[rank :: comm.size], blocks)] = rows
                shares[rank] = b""  # free its memory: all shares together are as large as the Jacobian
    return FirstStep(classes, jacobian)


def row_numbers(parts: list[tuple[int, int]], blocks: torch.Tensor) -> torch.Tensor:
    """The Jacobian's rows (n,) int64 in `parts`, each of which is a caption and the first number of its features."""
    return torch.cat([blocks[0, :0], *(blocks[caption, start : start + ROWS] for caption, start in parts)])


def compute_rows(method: Method, adapter: torch.Tensor, caption: int, start: int, width: int) -> torch.Tensor:
    """Compute rows (n, num_params) of the Jacobian: for at most ROWS numbers, from `start`, of a caption's features (width,)."""
    units = torch.eye(width, dtype=adapter.dtype, device=adapter.device)[start : start + ROWS]
    leaf = adapter.expand(len(units), -1).detach().requires_grad_()
    features = method.caption_features(method.unpack(leaf), None, torch.tensor([[caption]]))
    return back(features, units[:, None], [leaf])[0]
