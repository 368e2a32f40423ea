"""Weighted sums that are the same to the last bit, whatever the order and the number of ranks.

Floating-point addition depends on its order, integer addition does not. So each product is split into two fixed-point integers:

    weight * update  =  coarse * 2^-16  +  fine * 2^-58        |product| < 2^25, up to 2^21 clients without overflow

A client with a larger product, or with a product that is not finite, is dropped from the sum.
The idea of adding in fixed bins is that of Demmel and Nguyen, "Fast Reproducible Floating-Point Summation" (ARITH 2013).
Mostly there is a faster way to the same integers: where the numbers of a group of clients have few enough digits that no sum of
their products is rounded in float64, one product of matrices adds them up (`weighted_sum`).
"""

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

COARSE, FINE, LIMIT, MAX_CLIENTS = 2.0**16, 2.0**58, 2.0**25, 2**21
CARRY = 2**42  # fine units in a coarse one
FLOAT_BITS, FINEST_GRID = 53, 58  # bits of the whole numbers that float64 holds, and of FINE
MAX_BLOCK = 2**22  # numbers, of all clients together, that are converted to float64 at once
CACHED_BLOCK = 2**18  # on a processor: a block and its temporaries lie in its cache

Mask = npt.NDArray[np.bool_]


class ExactSum:
    """A running sum of weighted rows, in one flat int64 buffer: coarse parts, fine parts, total weight.

    `buffer` (2 * num_params + 1,) int64 are zeros to count in, such as a part of a larger buffer. Masks and weights of clients are
    NumPy's: on a few hundred numbers, its operators take a tenth of the time of PyTorch's.
    """

    def __init__(self, num_params: int, buffer: torch.Tensor | None = None) -> None:
        self._num_params = num_params
        self._buffer = torch.zeros(2 * num_params + 1, dtype=torch.int64) if buffer is None else buffer
        self._parts = self._buffer[:-1].view(2, num_params)  # coarse and fine

    def fits(self, updates: torch.Tensor, weights: torch.Tensor, lengths: torch.Tensor) -> Mask:
        """Whether each product of updates (num_clients, num_params) and weights (num_clients,) can be added: (num_clients,) bool.

        False for a client with a product that is not finite or too large. `lengths` are `norms(updates)`.
        """
        bound = bound_of(lengths.numpy(), weights.numpy())
        if bound < LIMIT / 2:  # false for NaN, too
            return np.ones(len(updates), bool)
        largest = torch.maximum(updates.amax(1), -updates.amin(1)) if self._num_params else torch.zeros(len(updates))
        return (largest.double().cpu() * weights < LIMIT).numpy()

    def add(
        self, updates: torch.Tensor, weights: torch.Tensor, lengths: torch.Tensor | None = None, fits: Mask | None = None
    ) -> Mask:
        """Add updates (num_clients, num_params) float32 or float64 with whole-number weights (num_clients,) int64.

        Returns (num_clients,) bool: False for a dropped client. `lengths` are `norms(updates)`, if known. `fits` gives the mask,
        where other rows of a client decide, too.
        """
        lengths = norms(updates) if lengths is None else lengths
        fits = self.fits(updates, weights, lengths) if fits is None else fits
        accepted = weights.numpy() * fits
        dropped = None if fits.all() else torch.from_numpy(~fits[:, None]).to(updates.device)
        grid = finest_grid(bound_of(np.where(fits, lengths.numpy(), 0.0), accepted))
        # a power of two changes no digit, so the weight is scaled instead of the product
        scale = torch.from_numpy(accepted * COARSE).to(updates.device)
        for block in blocks(self._num_params, len(updates), updates.device):
            part = updates[:, block] if dropped is None else updates[:, block].masked_fill(dropped, 0.0)
            self._parts[:, block].add_(weighted_sum(part, scale, grid))
        self._buffer[-1] += int(accepted.sum())
        return fits

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
        mean = torch.zeros(self._num_params, dtype=dtype)
        for block in blocks(self._num_params, 1, mean.device) if self.total else []:
            coarse, fine = self._parts[:, block]
            # who was added together decides how the whole is split; in this split, |fine| is at most half of a coarse unit
            carry = (fine + CARRY // 2).div(CARRY, rounding_mode="floor")
            coarse, fine = (coarse + carry).double(), (fine - carry * CARRY).double()
            mean[block] = coarse.div_(COARSE).add_(fine.div_(FINE)).div_(self.total)
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
        self,
        rows: Mapping[str, torch.Tensor],
        weights: Mapping[str, torch.Tensor],
        lengths: Mapping[str, torch.Tensor] | None = None,
        mask: Mask | None = None,
    ) -> Mask:
        """Add rows (num_clients, n) float32 with weights (num_clients,) int64, of the clients in the `mask` (num_clients,).

        `lengths` are `norms` of each row, if known. Returns (num_clients,) bool: False for a dropped client. One row that cannot
        be added drops its client from all sums.
        """
        lengths = {name: norms(row) for name, row in rows.items()} if lengths is None else lengths
        fits: Mask = np.logical_and.reduce([self._sums[name].fits(rows[name], weights[name], lengths[name]) for name in rows])
        fits = fits if mask is None else fits & mask
        for name in rows:
            self._sums[name].add(rows[name], weights[name], lengths[name], fits)
        self._num_clients += int(fits.sum())
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


def bound_of(lengths: npt.NDArray[np.float64], weights: npt.NDArray[np.int64]) -> float:
    """An upper bound of the sum of |products| in each column, but for the rounding errors of the norms `lengths`.

    No number of a row is larger than its norm.
    """
    return float((lengths * weights).sum())


def finest_grid(bound: float) -> int | None:
    """The largest g for which float64 holds every multiple of 2^-g up to twice `bound`; None where g is negative.

    Products of multiples of 2^-g are such multiples, too, and so are all their sums: in float64 no sum is rounded, in any order.
    """
    grid = FLOAT_BITS - 1 - math.frexp(bound)[1]
    return min(grid, FINEST_GRID) if grid >= 0 else None


def weighted_sum(part: torch.Tensor, scale: torch.Tensor, grid: int | None) -> torch.Tensor:
    """The coarse and fine sums (2, n) int64, on the CPU, of `part` (num_clients, n) float32 times `scale` (num_clients,) float64.

    One product of matrices is exact in all columns of multiples of 2^-grid. In other columns, each product becomes fixed-point
    numbers before the sum.
    """
    sums = fixed_point(torch.mv(part.double().t(), scale))
    columns = finer_columns(part, grid)
    if columns is not None:
        sums[:, columns] = fixed_point(part[:, columns].double().mul_(scale[:, None])).sum(1)
    return sums.cpu()


def finer_columns(part: torch.Tensor, grid: int | None) -> torch.Tensor | None:
    """The columns (k,) int64 of `part` (num_clients, n) with a number that is no multiple of 2^-grid; None without any.

    A column with one number needs no sum, whatever its digits.
    """
    if len(part) < 2:
        return None
    if grid is None:
        return torch.arange(part.shape[1], device=part.device)
    rest = torch.mul(part, 2.0**grid).frac_()  # exact: a power of two, and the last digits of a number
    if float(rest.amax()) == float(rest.amin()) == 0:  # the usual case, and faster than by column
        return None
    return rest.count_nonzero(0).nonzero()[:, 0]


def fixed_point(numbers: torch.Tensor) -> torch.Tensor:
    """Coarse and fine parts (2, ...) int64 of `numbers` (...) float64 in units of the coarse part, which are overwritten."""
    coarse = numbers.round()
    return torch.stack([coarse, numbers.sub_(coarse).mul_(CARRY).round_()]).long()


def norms(rows: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Norm of each client's row (num_clients,) float64, on the CPU; numbers where its `mask` is False do not count.

    In float32, a sum of 151 million squares stops growing: each square is less than half the distance to the next float.
    """
    squares = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for block in blocks(rows.shape[1], len(rows), rows.device):
        part = rows[:, block].double()
        if mask is not None:
            part *= mask[:, block]
        squares += torch.linalg.vector_norm(part, dim=1).square_()
    return squares.sqrt_().cpu()


def blocks(num_params: int, num_clients: int, device: torch.device) -> list[slice]:
    """Divide the parameters into blocks, so that a CLIP with all its weights needs no full copy in float64."""
    width = max(1, (CACHED_BLOCK if device.type == "cpu" else MAX_BLOCK) // max(1, num_clients))
    return [slice(start, start + width) for start in range(0, num_params, width)]
