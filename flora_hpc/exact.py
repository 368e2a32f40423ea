"""Weighted sums that come out the same to the last bit, whatever the order and the number of ranks.

Floating-point addition depends on its order, integer addition does not. Each product weight * update is therefore split into two
fixed-point integers: a coarse one in units of 2^-16 and the remainder in units of 2^-58. Up to 2^21 clients can be added
without overflow; a product of 2^25 or more, or one that is not finite, does not fit and its client is left out.
The idea of adding in fixed bins is that of Demmel and Nguyen, "Fast Reproducible Floating-Point Summation" (ARITH 2013).
"""

import numpy as np
import numpy.typing as npt
import torch

COARSE, FINE, LIMIT, MAX_CLIENTS = 2.0**16, 2.0**58, 2.0**25, 2**21
MAX_IN_FLOAT = 2**12  # clients
MAX_BLOCK = 2**22  # numbers of all clients turned into fixed point at once
CACHED_BLOCK = 2**17  # on a processor: what a block needs stays in its cache (measured: 2 to 4 times as fast)


class ExactSum:
    """A running sum of weighted updates, in one flat int64 buffer: coarse parts, fine parts, total weight."""

    def __init__(self, num_params: int) -> None:
        self._num_params = num_params
        self._buffer = torch.zeros(2 * num_params + 1, dtype=torch.int64)
        self._scratch = torch.empty(0, dtype=torch.float64)  # kept, since memory that is new each time costs as much as the sum

    def add(self, updates: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Add updates (num_clients, num_params) float32 with whole-number weights (num_clients,) int64.

        Returns (num_clients,) bool: False for a client that was left out because a product is not finite or too large.
        """
        largest = torch.maximum(updates.amax(1), -updates.amin(1)) if self._num_params else torch.zeros(len(updates))
        fits = largest.double().cpu() * weights < LIMIT  # false for NaN, too
        all_fit = bool(fits.all())
        coarse_sum, fine_sum = self._buffer[:-1].view(2, self._num_params)
        # powers of two change no digit, so that a product is scaled together with its weight
        scale, left_out = (weights[:, None].double() * COARSE).to(updates.device), ~fits[:, None].to(updates.device)
        for block in blocks(self._num_params, len(updates), updates.device):
            part = updates[:, block]
            products, coarse = self._two_like(part)
            products.copy_(part).mul_(scale)  # in units of the coarse part
            if not all_fit:
                products.masked_fill_(left_out, 0.0)
            torch.round(products, out=coarse)
            fine = products.sub_(coarse).mul_(FINE / COARSE).round_()
            sums = torch.stack([_whole_sum(coarse), _whole_sum(fine)]).cpu()  # at once: each copy waits for the device
            coarse_sum[block] += sums[0]
            fine_sum[block] += sums[1]
        self._buffer[-1] += (weights * fits).sum()
        return fits

    def _two_like(self, part: torch.Tensor) -> torch.Tensor:
        """Two float64 tensors of the shape and device of `part`, as one; their numbers are left over from before."""
        if self._scratch.numel() < 2 * part.numel() or self._scratch.device != part.device:
            self._scratch = torch.empty(2 * part.numel(), dtype=torch.float64, device=part.device)
        return self._scratch[: 2 * part.numel()].view(2, *part.shape)

    @property
    def buffer(self) -> npt.NDArray[np.int64]:
        """What to allreduce: a view, so that the sum over ranks lands here."""
        return self._buffer.numpy()

    @property
    def total(self) -> int:
        """The weights added, without those of clients left out."""
        return int(self._buffer[-1])

    def mean(self) -> torch.Tensor:
        """The weighted mean update (num_params,) float32; zeros when nobody was added."""
        coarse, fine = self._buffer[:-1].view(2, self._num_params)
        mean = torch.zeros(self._num_params)
        for block in blocks(self._num_params, 1, mean.device) if self.total else []:
            mean[block] = coarse[block].double().div_(COARSE).add_(fine[block].double().div_(FINE)).div_(self.total)
        return mean


def _whole_sum(numbers: torch.Tensor) -> torch.Tensor:
    """The sum (n,) int64 over clients of whole numbers (num_clients, n) float64 of up to 2^41, without rounding.

    Up to 2^12 of them add up to 2^53 at most, which float64 holds exactly in any order; turning each into an integer takes longer.
    """
    if len(numbers) == 1:
        return numbers[0].long()
    return numbers.sum(0).long() if len(numbers) <= MAX_IN_FLOAT else numbers.long().sum(0)


def blocks(num_params: int, num_clients: int, device: torch.device) -> list[slice]:
    """Cuts of the parameters, so that a CLIP with all its weights needs no copy of itself in float64."""
    width = max(1, (CACHED_BLOCK if device.type == "cpu" else MAX_BLOCK) // max(1, num_clients))
    return [slice(start, start + width) for start in range(0, num_params, width)]
