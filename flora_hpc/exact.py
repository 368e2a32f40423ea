"""Weighted sums that are the same to the last bit, whatever the order and the number of ranks.

Floating-point addition depends on its order, integer addition does not. So each product is split into two fixed-point integers:

    weight * update  =  coarse * 2^-16  +  fine * 2^-58        |product| < 2^25, up to 2^21 clients without overflow

A client with a larger product, or with a product that is not finite, is dropped from the sum.
The idea of adding in fixed bins is that of Demmel and Nguyen, "Fast Reproducible Floating-Point Summation" (ARITH 2013).
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

COARSE, FINE, LIMIT, MAX_CLIENTS = 2.0**16, 2.0**58, 2.0**25, 2**21
MAX_IN_FLOAT = 2**12  # clients
MAX_BLOCK = 2**22  # numbers, of all clients together, that are converted to fixed point at once
CACHED_BLOCK = 2**17  # on a processor: a block and its temporaries fit into the cache (measured: 2 to 4 times as fast)


class ExactSum:
    """A running sum of weighted rows, in one flat int64 buffer: coarse parts, fine parts, total weight.

    `buffer` (2 * num_params + 1,) int64 are zeros to count in, such as a part of a larger buffer.
    """

    def __init__(self, num_params: int, buffer: torch.Tensor | None = None) -> None:
        self._num_params = num_params
        self._buffer = torch.zeros(2 * num_params + 1, dtype=torch.int64) if buffer is None else buffer
        self._scratch = torch.empty(0, dtype=torch.float64)  # reused: allocating it each time costs as much as the sum

    def fits(self, updates: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Whether each product of updates (num_clients, num_params) and weights (num_clients,) can be added: (num_clients,) bool.

        False for a client with a product that is not finite or too large.
        """
        largest = torch.maximum(updates.amax(1), -updates.amin(1)) if self._num_params else torch.zeros(len(updates))
        return largest.double().cpu() * weights < LIMIT  # false for NaN, too

    def add(self, updates: torch.Tensor, weights: torch.Tensor, fits: torch.Tensor | None = None) -> torch.Tensor:
        """Add updates (num_clients, num_params) float32 or float64 with whole-number weights (num_clients,) int64.

        Returns (num_clients,) bool: False for a dropped client. `fits` gives this mask, where other rows of a client decide, too.
        """
        fits = self.fits(updates, weights) if fits is None else fits
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

    def mean(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weighted mean update (num_params,), rounded to `dtype`; zeros when no client was added."""
        coarse, fine = self._buffer[:-1].view(2, self._num_params)
        mean = torch.zeros(self._num_params, dtype=dtype)
        for block in blocks(self._num_params, 1, mean.device) if self.total else []:
            mean[block] = coarse[block].double().div_(COARSE).add_(fine[block].double().div_(FINE)).div_(self.total)
        return mean


class ExactSums:
    """The exact sums of several rows that each client sends, and the number of clients, in one buffer for one allreduce.

    `widths` maps the name of each row to its numbers.
    """

    def __init__(self, widths: Mapping[str, int]) -> None:
        sizes = [2 * width + 1 for width in widths.values()]
        self._buffer = torch.zeros(sum(sizes) + 1, dtype=torch.int64)
        *parts, self._num_clients = torch.split(self._buffer, [*sizes, 1])
        self._sums = {name: ExactSum(widths[name], part) for name, part in zip(widths, parts, strict=True)}

    def add(
        self, rows: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor], mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Add rows (num_clients, n) float32 with weights (num_clients,) int64, of the clients in the `mask` (num_clients,) bool.

        Returns (num_clients,) bool: False for a dropped client. One row that cannot be added drops its client from all sums.
        """
        fits = torch.stack([self._sums[name].fits(rows[name], weights[name]) for name in rows]).all(0)
        fits = fits if mask is None else fits & mask
        for name in rows:
            self._sums[name].add(rows[name], weights[name], fits)
        self._num_clients += fits.sum()
        return fits

    @property
    def buffer(self) -> npt.NDArray[np.int64]:
        """The buffer for the allreduce: a view, so the sums over ranks are written into this object."""
        return self._buffer.numpy()

    @property
    def num_clients(self) -> int:
        """How many clients were added."""
        return int(self._num_clients)

    def total(self, name: str) -> int:
        """The sum of the weights of a row."""
        return self._sums[name].total

    def means(self) -> dict[str, torch.Tensor]:
        """The weighted mean (n,) float32 of each row; zeros when no client was added."""
        return {name: row.mean() for name, row in self._sums.items()}

    def precise_mean(self, name: str) -> torch.Tensor:
        """The weighted mean (n,) float64 of one row."""
        return self._sums[name].mean(torch.float64)


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
