"""The exact sums over clients that a row of /rounds needs: neither the order of clients nor the number of ranks matters."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from flora_hpc.records.schema import CLIENTS, Rows

MANTISSA_BITS, LEAST_EXPONENT, NUM_EXPONENTS = 24, -148, 277  # of float32, as np.frexp gives them, the smallest numbers included
UNIT = MANTISSA_BITS - LEAST_EXPONENT  # sums of losses are integers, in units of 2**-UNIT
LOW_BITS = 32
SUM_BYTES = 48  # the largest float32, times 2**31 examples, of 2**31 clients, takes 363 bits
ADDED = ("num_clients", "num_rejected", "num_attackers", "num_examples", "num_accepted_examples", "uplink_bytes", "downlink_bytes")
TOTALS: np.dtype[Any] = np.dtype([*((name, "i8") for name in ADDED), ("not_finite", "f8"), ("loss_sum", "u1", (SUM_BYTES,))])
PERSONAL: np.dtype[Any] = np.dtype([(name, CLIENTS[name]) for name in ("client", "global_accuracy", "personal_accuracy")])


def of(clients: Rows) -> Rows:
    """The sums (1,) of TOTALS over rows of /clients. Losses count for accepted updates alone, weighted by the clients' examples."""
    accepted = clients["weight"] > 0
    losses, examples = clients["train_loss"][accepted], clients["num_examples"][accepted].astype(np.int64)
    finite = np.isfinite(losses)
    totals = np.zeros(1, TOTALS)
    totals["num_clients"], totals["num_rejected"] = len(clients), len(clients) - accepted.sum()
    totals["num_attackers"], totals["num_examples"] = clients["attacks"].sum(), clients["num_examples"].sum(dtype=np.int64)
    totals["num_accepted_examples"] = examples.sum()
    totals["uplink_bytes"], totals["downlink_bytes"] = clients["uplink_bytes"].sum(), clients["downlink_bytes"].sum()
    with np.errstate(invalid="ignore"):  # infinities of both signs
        totals["not_finite"] = losses[~finite].sum(dtype=np.float64)
    exact = weighted_sum(losses[finite], examples[finite])
    totals["loss_sum"] = np.frombuffer(exact.to_bytes(SUM_BYTES, "little", signed=True), np.uint8)
    return totals


def weighted_sum(losses: npt.NDArray[np.float32], examples: npt.NDArray[np.int64]) -> int:
    """The exact sum of finite `losses` (n,) float32, times `examples` (n,) below 2**31 each, in units of 2**-UNIT.

    Products of the same exponent are added as integers, their upper and lower bits apart: no sum of 2**31 clients overflows.
    """
    fractions, exponents = np.frexp(losses.astype(np.float64))
    products = (fractions * 2.0**MANTISSA_BITS).astype(np.int64) * examples
    places = exponents - LEAST_EXPONENT
    high, low = np.zeros(NUM_EXPONENTS, np.int64), np.zeros(NUM_EXPONENTS, np.int64)
    np.add.at(high, places, products >> LOW_BITS)
    np.add.at(low, places, products & (1 << LOW_BITS) - 1)
    sums = zip(high.tolist(), low.tolist(), strict=True)
    return sum(((upper << LOW_BITS) + lower) << place for place, (upper, lower) in enumerate(sums))


def note(row: Rows, parts: Sequence[Rows]) -> None:
    """Put the sums of all ranks into a row of /rounds (1,).

    The loss is the exact mean, rounded once; NaN without an accepted update.
    """
    totals = np.frombuffer(b"".join([part.tobytes() for part in parts]), TOTALS)
    for name in ADDED:
        if name in (row.dtype.names or ()):
            row[name] = totals[name].sum()
    num_examples = int(totals["num_accepted_examples"].sum())
    with np.errstate(invalid="ignore"):
        not_finite = float(totals["not_finite"].sum())
    exact = sum(int.from_bytes(data.tobytes(), "little", signed=True) for data in totals["loss_sum"])
    mean = exact / (num_examples << UNIT) if num_examples else np.nan
    row["train_loss"] = mean if not_finite == 0 else not_finite
