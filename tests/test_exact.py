import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flora_hpc import exact
from flora_hpc.exact import MAX_CLIENTS, ExactSum

NAN, INF = float("nan"), float("inf")

Client = tuple[list[float], int]  # three update values, the weight


def added(*clients: Client, to: ExactSum | None = None) -> ExactSum:
    exact = ExactSum(len(clients[0][0])) if to is None else to
    exact.add(torch.tensor([update for update, _ in clients]), torch.tensor([weight for _, weight in clients]))
    return exact


def wholes(exact: ExactSum) -> list[int]:
    """The sums in units of 2^-58."""
    coarse, fine = exact.buffer[:-1].reshape(2, -1).tolist()
    return [c * 2**42 + f for c, f in zip(coarse, fine, strict=True)]


def sums_of_integers(clients: Sequence[Client]) -> list[int]:
    """The same by Python's integers: each product is rounded to a multiple of 2^-58, to even where two are equally near."""
    columns = zip(*(update for update, _ in clients), strict=True)
    weights = [weight for _, weight in clients]
    return [
        sum(round(Fraction(number) * weight * 2**58) for number, weight in zip(column, weights, strict=True)) for column in columns
    ]


def test_the_weighted_mean_of_two_clients() -> None:
    """(1 * 1 + 3 * 3) / 4 and (1 * 2 - 3 * 4) / 4."""
    exact = added(([1.0, 2.0], 1), ([3.0, -4.0], 3))
    assert exact.mean().tolist() == [2.5, -2.5]
    assert exact.total == 4


def test_the_mean_is_float32() -> None:
    assert added(([1.0], 1)).mean().dtype == torch.float32


def test_a_single_client_gets_its_own_update_back() -> None:
    update = torch.tensor([[0.1, -1e-9, 3.1415927, 2.0**-40]])
    exact = ExactSum(4)
    exact.add(update, torch.tensor([7]))
    assert torch.equal(exact.mean(), update[0])


def test_great_values_that_cancel_leave_the_small_one_whole() -> None:
    """In float32, all orders but one would lose 2^-30 beside 2^24."""
    exact = added(([2.0**24], 1), ([2.0**-30], 1), ([-(2.0**24)], 1), ([0.0], 1))
    assert exact.mean().tolist() == [2.0**-32]


def test_what_is_below_the_resolution_counts_as_nothing() -> None:
    assert added(([2.0**-58, 2.0**-60], 1)).mean().tolist() == [2.0**-58, 0.0]


def test_clients_may_come_one_by_one_or_together() -> None:
    clients: list[Client] = [([0.1, 1e-7], 3), ([-2.7, 5.0], 11), ([33.3, -1e-6], 2)]
    together, one_by_one = added(*clients), ExactSum(2)
    for client in clients:
        added(client, to=one_by_one)
    assert wholes(together) == wholes(one_by_one)
    assert together.mean().equal(one_by_one.mean())


def test_the_sum_over_ranks_lands_in_the_buffer() -> None:
    """Like an allreduce: 1 * 1 on one rank and 3 * 5 on the other, divided by the weight 4."""
    here, there = added(([1.0], 1)), added(([5.0], 3))
    here.buffer[...] += there.buffer
    assert here.mean().tolist() == [4.0]
    assert here.total == 4


def test_nobody_gives_zeros() -> None:
    assert ExactSum(3).mean().tolist() == [0.0, 0.0, 0.0]
    assert ExactSum(3).total == 0


@pytest.mark.parametrize("bad", [NAN, INF, -INF, 2.0**24, -(2.0**24)], ids=["nan", "inf", "-inf", "large", "large negative"])
def test_a_client_that_does_not_fit_is_left_out_and_reported(bad: float) -> None:
    """The product counts: with weight 2, an update of 2^24 gives 2^25. One wrong value drops the whole client."""
    exact = ExactSum(2)
    fits = exact.add(torch.tensor([[1.0, 2.0], [8.0, bad], [4.0, -4.0]]), torch.tensor([1, 2, 1]))
    assert fits.tolist() == [True, False, True]
    assert exact.mean().tolist() == [2.5, -1.0]
    assert exact.total == 2


def test_the_largest_product_that_fits() -> None:
    exact = ExactSum(1)
    assert exact.add(torch.tensor([[2.0**25 - 2]]), torch.tensor([1])).tolist() == [True]
    assert exact.mean().tolist() == [2.0**25 - 2]


def test_all_left_out_gives_zeros() -> None:
    exact = ExactSum(2)
    assert exact.add(torch.tensor([[NAN, 1.0], [1.0, INF]]), torch.tensor([1, 1])).tolist() == [False, False]
    assert exact.mean().tolist() == [0.0, 0.0]


def test_the_largest_cohort_of_the_largest_updates_does_not_overflow() -> None:
    """The largest coarse part and the largest fine part (half a coarse unit), added MAX_CLIENTS times."""
    largest = [2.0**25 - 2, -(2.0**25 - 2), 2.0**-17, -(2.0**-17)]
    exact = added((largest, 1))
    exact.buffer[...] *= MAX_CLIENTS
    assert exact.mean().tolist() == largest


@pytest.mark.parametrize("num_clients", [1, 3])
def test_the_cuts_decide_no_bit(num_clients: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values from 2^-40 to 2^20, and weights beyond float32; one client does not fit."""
    generator = torch.Generator().manual_seed(1)
    updates = torch.randn(num_clients, 1001, generator=generator) * 2.0 ** torch.randint(-40, 3, (1001,), generator=generator)
    weights = torch.tensor([2**21 - 1, 3, 2**20 + 1])[:num_clients]
    if num_clients > 1:
        updates[1, 500] = NAN

    def summed(width: int) -> ExactSum:
        monkeypatch.setattr(exact, "CACHED_BLOCK", width)
        total = ExactSum(1001)
        total.add(updates, weights)
        return total

    whole, cut = summed(2**22), summed(64)
    assert wholes(whole) == wholes(cut)
    assert whole.mean().equal(cut.mean())
    clients = [(update.tolist(), int(weight)) for update, weight in zip(updates, weights, strict=True) if update.isfinite().all()]
    assert wholes(whole) == sums_of_integers(clients)


def test_no_clients_in_a_batch_add_nothing() -> None:
    exact = ExactSum(2)
    assert exact.add(torch.empty(0, 2), torch.empty(0, dtype=torch.int64)).tolist() == []
    assert exact.total == 0


values = st.lists(st.floats(-(2.0**20), 2.0**20, width=32), min_size=3, max_size=3)
cohorts = st.lists(st.tuples(values, st.integers(1, 31)), min_size=1, max_size=8)


@settings(deadline=None, database=None)
@given(cohort=cohorts, data=st.data())
def test_any_split_over_ranks_in_any_order_gives_the_same_bits(cohort: list[Client], data: st.DataObject) -> None:
    num_ranks = data.draw(st.integers(1, 4), label="ranks")
    order = data.draw(st.permutations(cohort), label="order")
    ranks = [ExactSum(3) for _ in range(num_ranks)]
    while order:  # groups of clients
        group, order = order[: (size := data.draw(st.integers(1, 3), label="group"))], order[size:]
        added(*group, to=ranks[data.draw(st.integers(0, num_ranks - 1), label="rank")])
    for other in ranks[1:]:
        ranks[0].buffer[...] += other.buffer
    assert ranks[0].mean().numpy().tobytes() == added(*cohort).mean().numpy().tobytes()


@settings(deadline=None, database=None)
@given(cohort=cohorts)
def test_the_mean_is_that_of_rational_arithmetic(cohort: list[Client]) -> None:
    """Correctly rounded to float32, up to the resolution 2^-58 of the sum; a hundredth is allowed for double rounding."""
    total = sum(weight for _, weight in cohort)
    for i, mean in enumerate(added(*cohort).mean().numpy()):
        right = sum(Fraction(update[i]) * weight for update, weight in cohort) / total
        tolerance = Fraction(float(np.spacing(np.float32(abs(right))))) * Fraction(51, 100) + Fraction(1, 2**58)
        assert abs(Fraction(float(mean)) - right) <= tolerance


def any_float32(exponents: st.SearchStrategy[int]) -> st.SearchStrategy[float]:
    """Numbers with 24 random bits, or with few, or 0; `exponents` are those of their last bits."""
    bits = st.integers(-(2**24) + 1, 2**24 - 1) | st.integers(-3, 3)
    return st.builds(lambda number, exponent: math.ldexp(number, exponent), bits, exponents)


@settings(deadline=None, database=None)
@given(data=st.data())
def test_all_sums_are_those_of_integers(data: st.DataObject) -> None:
    """Small and large numbers, of few bits and of many, alone and side by side: added by a product of matrices, or one by one."""
    around = st.integers(-70, 0) if data.draw(st.booleans(), label="all sizes") else st.integers(-40, -30)
    weights = st.integers(1, 3) if data.draw(st.booleans(), label="small weights") else st.integers(1, MAX_CLIENTS)
    update = st.lists(any_float32(around), min_size=4, max_size=4)
    clients = data.draw(st.lists(st.tuples(update, weights), min_size=1, max_size=9), label="clients")
    clients = [client for client in clients if max(map(abs, client[0])) * client[1] < 2**25]
    if clients:
        exact = added(*clients)
        assert exact.total == sum(weight for _, weight in clients)
        assert wholes(exact) == sums_of_integers(clients)


def test_halves_go_to_the_even_integer_in_a_sum_of_several() -> None:
    """Products of 1.5, 2.5 and -0.5 units of 2^-58: 2, 2 and 0; beside them a number that makes the grid coarse."""
    clients: list[Client] = [([1.5 * 2.0**-58, 1.0], 1), ([2.5 * 2.0**-58, 2.0**20], 1), ([-0.5 * 2.0**-58, -3.0], 1)]
    assert wholes(added(*clients))[0] == 4


def columns_one_by_one(monkeypatch: pytest.MonkeyPatch, *clients: Client) -> list[list[int]]:
    """Add `clients`; the columns whose products became fixed-point numbers one by one, of each block."""
    columns: list[list[int]] = []
    original = exact.finer_columns

    def noted(part: torch.Tensor, grid: int | None) -> torch.Tensor | None:
        result = original(part, grid)
        columns.append([] if result is None else result.tolist())
        return result

    monkeypatch.setattr(exact, "finer_columns", noted)
    assert wholes(added(*clients)) == sums_of_integers(clients)
    return columns


def test_only_columns_with_too_many_digits_are_added_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the last column 2^10 and 2^-50 need 60 bits; 2^10 and 2^-30 in the first one fit into 53."""
    clients: list[Client] = [([2.0**-30, 0.0, 2.0**-50], 1), ([2.0**10, 0.125, 2.0**10], 1)]
    assert columns_one_by_one(monkeypatch, *clients) == [[2]]


def test_updates_of_usual_sizes_are_added_by_a_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Adam changes in weights around 0.01: differences of two float32 numbers of this size, 32 examples a client."""
    before = torch.linspace(0.001, 0.02, 50)
    steps = torch.linspace(-5e-4, 5e-4, 200)[:, None] * torch.linspace(0.5, 1, 50)
    assert columns_one_by_one(monkeypatch, *[(row.tolist(), 32) for row in before + steps - before]) == [[]]


@pytest.mark.parametrize("sign", [1, -1])
def test_numbers_as_large_as_their_norm(sign: int) -> None:
    """The largest that fits and a smaller one that cancels all but its last digit, of clients with large weights."""
    largest = sign * float(np.nextafter(np.float32(16), np.float32(0)))
    clients: list[Client] = [([largest], MAX_CLIENTS), ([-largest], MAX_CLIENTS), ([sign * 2.0**-58], 1), ([sign * 2.0**-20], 3)]
    assert wholes(added(*clients)) == sums_of_integers(clients)


def test_the_split_into_coarse_and_fine_decides_no_bit_of_the_mean() -> None:
    """One unit of 2^-58, written as 2^59 + 1 fine units less 2^17 coarse ones: in float64 2^59 + 1 is 2^59."""
    exact = ExactSum(1)
    exact.buffer[...] = [-(2**17), 2**59 + 1, 1]
    assert exact.mean().tolist() == [2.0**-58]


@pytest.mark.parametrize("num_clients", [2**12, 2**12 + 1])
def test_many_large_products_add_up_without_rounding(num_clients: int) -> None:
    """Products just below the limit, of one sign and with odd last digits; compared with Python's integers."""
    largest = np.nextafter(np.float32(2**25), np.float32(0))
    updates = np.full((num_clients, 2), largest)
    updates[:, 1] = np.float32(1 / 3) * 2.0**-10
    total = ExactSum(2)
    assert total.add(torch.from_numpy(updates), torch.ones(num_clients, dtype=torch.int64)).all()
    coarse, fine = total.buffer[:-1].reshape(2, 2).tolist()
    for i, value in enumerate(updates[0].tolist()):
        assert Fraction(coarse[i], 2**16) + Fraction(fine[i], 2**58) == num_clients * Fraction(value)
