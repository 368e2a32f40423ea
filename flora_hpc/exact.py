"""Weighted sums that are the same to the last bit, whatever the order and the number of ranks.

Floating-point addition depends on its order, integer addition does not. So each product is split into two fixed-point integers:

    weight * update  =  coarse * 2^-16  +  fine * 2^-58        |product| < 2^25, up to 2^21 clients without overflow

A client with a larger product, or with a product that is not finite, is dropped from the sum.
The idea of adding in fixed bins is that of Demmel and Nguyen, "Fast Reproducible Floating-Point Summation" (ARITH 2013).
"""

import numpy as np
import numpy.typing as npt
import torch

COARSE, FINE, LIMIT, MAX_CLIENTS = 2.0**16, 2.0**58, 2.0**25, 2**21
MAX_IN_FLOAT = 2**12  # clients
MAX_BLOCK = 2**22  # numbers, of all clients together, that are converted to fixed point at once
CACHED_BLOCK = 2**17  # on a processor: a block and its temporaries fit into the cache (measured: 2 to 4 times as fast)


class ExactSum:
    """A running sum of weighted updates, in one flat int64 buffer: coarse parts, fine parts, total weight."""

    def __init__(self, num_params: int) -> None:
        self._num_params = num_params
        self._buffer = torch.zeros(2 * num_params + 1, dtype=torch.int64)
        self._scratch = torch.empty(0, dtype=torch.float64)  # reused: allocating it each time costs as much as the sum

    def add(self, updates: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Add updates (num_clients, num_params) float32 with whole-number weights (num_clients,) int64.

        Returns (num_clients,) bool: False for a dropped client, with a product that is not finite or too large.
        """
        largest = torch.maximum(updates.amax(1), -updates.amin(1)) if self._num_params else torch.zeros(len(updates))
        fits = largest.double().cpu() * weights < LIMIT  # false for NaN, too
        all_fit = bool(fits.all())
        coarse_sum, fine_sum = self._buffer[:-1].view(2, self._num_params)
        # a power of two changes no digit, so the weight is scaled instead of the product
        scale, dropped = (weights[:, None].double() * COARSE).to(updates.device), ~fits[:, None].to(updates.device)
        for block in blocks(self._num_params, len(updates), updates.device):
            part = updates[:, block]
            products, coarse = self._two_like(part)
            products.copy_(part).mul_(scale)  # in units of the coarse part
            if not all_fit:
                products.masked_fill_(dropped, 0.0)
            torch.round(products, out=coarse)
            fine = products.sub_(coarse).mul_(FINE / COARSE).round_()
            sums = torch.stack([_whole_sum(coarse), _whole_sum(fine)]).cpu()  # one copy, since each copy waits for the device
            coarse_sum[block] += sums[0]
            fine_sum[block] += sums[1]
        self._buffer[-1] += (weights * fits).sum()
        return fits

    def _two_like(self, part: torch.Tensor) -> torch.Tensor:
        """Two float64 tensors with the shape and device of `part`, stacked; their values are arbitrary."""
        if self._scratch.numel() < 2 * part.numel() or self._scratch.device != part.device:
            self._scratch = torch.empty(2 * part.numel(), dtype=torch.float64, device=part.device)
        return self._scratch[: 2 * part.numel()].view(2, *part.shape)

    @property
    def buffer(self) -> npt.NDArray[np.int64]:
        """The buffer for the allreduce: a view, so the sum over ranks is written into this object."""
        return self._buffer.numpy()

    @property
    def total(self) -> int:
        """The sum of the weights, without dropped clients."""
        return int(self._buffer[-1])

    def mean(self) -> torch.Tensor:
        """The weighted mean update (num_params,) float32; zeros when no client was added."""
        coarse, fine = self._buffer[:-1].view(2, self._num_params)
        mean = torch.zeros(self._num_params)
        for block in blocks(self._num_params, 1, mean.device) if self.total else []:
            mean[block] = coarse[block].double().div_(COARSE).add_(fine[block].double().div_(FINE)).div_(self.total)
        return mean


def _whole_sum(numbers: torch.Tensor) -> torch.Tensor:
    """The exact sum (n,) int64 over clients of whole numbers (num_clients, n) float64 of up to 2^41.

    The sum of up to 2^12 such numbers is at most 2^53, which float64 holds exactly in any order. Adding in float64 is faster than
    converting each number to an integer.
    """
    if len(numbers) == 1:
        return numbers[0].long()
    return numbers.sum(0).long() if len(numbers) <= MAX_IN_FLOAT else numbers.long().sum(0)


def blocks(num_params: int, num_clients: int, device: torch.device) -> list[slice]:
    """Divide the parameters into blocks, so that a CLIP with all its weights needs no full copy in float64."""
    width = max(1, (CACHED_BLOCK if device.type == "cpu" else MAX_BLOCK) // max(1, num_clients))
    return [slice(start, start + width) for start in range(0, num_params, width)]
