"""Rules that compare all updates of a round, as pure functions, against numbers from elsewhere, in float64.

The numbers of seven updates are those of Flower 1.42.0 and ByzFL 0.0.11 where these follow the papers; they were recorded, since
neither package is a dependency. The others are worked out from the papers' formulas.
"""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from flora_hpc import rows as rules
from flora_hpc.algorithms import _krum, _rows
from flora_hpc.algorithms._algorithm import Combine, CombineRows
from flora_hpc.algorithms.bulyan import choose, near_median
from tests.pure_rounds import build, part

CLOSE = {"rtol": 0, "atol": 1e-9}
HONEST = (
    (0.10, 0.20, -0.10),
    (0.12, 0.18, -0.08),
    (0.09, 0.25, -0.12),
    (0.11, 0.21, -0.09),
    (0.13, 0.16, -0.11),
    (0.08, 0.22, -0.14),
)
SEVEN = (*HONEST, (-5.0, 4.0, 9.0))  # the last one is an attacker; a fraction of 0.2 is f = 1


def double(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(actual: torch.Tensor, expected: Any) -> None:
    torch.testing.assert_close(actual, double(expected), **CLOSE)


def squares_of(rows: torch.Tensor) -> torch.Tensor:
    return rules.symmetric(rules.squares(rows), len(rows) + 1)


def direction(rows: torch.Tensor, name: str, **options: Any) -> torch.Tensor:
    """The direction of a rule from float64 rows (num_clients, n)."""
    rule = part(build(name, **options).combine, CombineRows)
    coefficients = None if rule.mix is None else rule.mix(squares_of(rows))
    result: torch.Tensor = rule.columns(rules.mixed(coefficients, rows), len(rows))
    return result


FACTS: dict[str, tuple[str, dict[str, Any], tuple[float, ...]]] = {
    "median": ("median", {}, (0.10, 0.21, -0.10)),
    "trimmed mean": ("trimmed_mean", {}, (0.10, 0.212, -0.10)),
    "mean": ("trimmed_mean", {"fraction": 0.0}, tuple(np.mean(SEVEN, axis=0))),
    "krum": ("krum", {}, HONEST[0]),
    "multi-krum, 5 of 7": ("multi_krum", {"num_chosen": 5}, (0.108, 0.194, -0.104)),
    "multi-krum, 6 of 7": ("multi_krum", {}, (0.105, 0.203333333333, -0.106666666667)),
    "bulyan": ("bulyan", {"fraction": 0.2}, (0.11, 0.196666666667, -0.10)),
    "geometric median": ("geometric_median", {"iterations": 100}, (0.1018051538, 0.2022327053, -0.0983525391)),
}


@pytest.mark.parametrize("case", FACTS)
def test_seven_updates_of_which_one_is_an_attackers(case: str) -> None:
    name, options, expected = FACTS[case]
    close(direction(double(SEVEN), name, **options), expected)


def test_the_scores_of_krum() -> None:
    close(_krum.scores(squares_of(double(SEVEN)), 0.2), (0.0065, 0.0105, 0.0147, 0.0076, 0.0143, 0.0141, 492.7625))


def test_the_median_of_an_even_number_of_updates_is_the_mean_of_the_middle_two() -> None:
    close(direction(double(HONEST), "median"), (0.105, 0.205, -0.105))


@pytest.mark.parametrize(("iterations", "value"), [(1, 1.324169665212), (2, 0.743584186654), (3, 0.570094503486)])
def test_the_first_steps_of_weiszfeld_from_the_mean(iterations: int, value: float) -> None:
    points = double([(0, 0), (1, 0), (0, 1), (10, 10)])
    close(direction(points, "geometric_median", iterations=iterations), (value, value))


def test_weiszfeld_converges_to_the_point_of_least_distances() -> None:
    points = double([(0, 0), (1, 0), (0, 1), (10, 10)])
    torch.testing.assert_close(direction(points, "geometric_median", iterations=1000), double((0.5, 0.5)), rtol=0, atol=1e-6)


def test_a_step_of_centered_clipping_from_zero_is_the_mean_of_clipped_updates() -> None:
    rows = double(SEVEN)
    clipped = rows * (0.25 / rows.norm(dim=1, keepdim=True)).clamp(max=1)
    close(direction(rows, "centered_clipping", tau=0.25, iterations=1), clipped.mean(0).tolist())


def test_steps_of_centered_clipping_equal_its_formula_on_the_updates_themselves() -> None:
    rows, center = double(SEVEN), torch.zeros(3, dtype=torch.float64)
    for _ in range(5):
        differences = rows - center
        center = center + (differences * (0.1 / differences.norm(dim=1, keepdim=True)).clamp(max=1)).mean(0)
    close(direction(rows, "centered_clipping", tau=0.1, iterations=5), center.tolist())


def test_norm_clipping_shortens_long_updates_only() -> None:
    combine = part(build("norm_clipping", bound=1.0).combine, Combine)
    rows = combine.prepare(torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]), torch.ones(3, 1))["update"]
    torch.testing.assert_close(rows, torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))


# --- FLTrust: the last row is the server's own update


def trusted(rows: Any) -> torch.Tensor:
    rule = part(build("fltrust").combine, CombineRows)
    assert rule.measure is not None
    assert rule.mix is not None
    result: torch.Tensor = rule.columns(rules.mixed(rule.mix(rule.measure(double(rows))), double(rows)), len(rows))
    return result


def test_updates_count_by_their_angle_to_the_servers_and_get_its_length() -> None:
    """Trust 1, 1 / sqrt 2 and 0."""
    close(trusted([(2, 0), (1, 1), (-3, 0), (1, 0)]), (0.8786796564, 0.2928932188))


def test_a_server_that_trusts_nobody_stays_where_it_is() -> None:
    close(trusted([(-1, 0), (0, 5), (0, 0), (1, 0)]), (0.0, 0.0))
    close(trusted([(-1, 0), (0, 5), (0, 0)]), (0.0, 0.0))


def test_an_attacker_does_not_gain_from_length() -> None:
    """Squared distances would have lost the angle: 1e30 + 1 is 1e30."""
    close(trusted([(1.0, 0.0), (-1e15, 1e14), (1e15, 0.0), (0.5, 0.0)]), (0.5, 0.0))


# --- Krum's choice where updates are small beside the weights


def test_krum_chooses_what_exact_arithmetic_chooses_in_50_draws() -> None:
    """Updates of 1e-3 from weights of 0.7, as whole multiples of 2^-24, so that sums of squared integers are exact distances."""
    for draw in range(50):
        generator = np.random.default_rng(draw)
        weights = (generator.normal(0, 0.7, 24_576) * 2**24).round() / 2**24
        ends = ((weights + generator.normal(0, 1e-3, (10, 24_576))) * 2**24).round() / 2**24
        rows = (ends - weights).astype(np.float32)
        whole = (rows.astype(np.float64) * 2**24).astype(np.int64)
        assert (whole / 2**24 == rows).all()
        assert np.abs(whole).max() < 2**19  # so that a sum is below 2^63
        exact = [[int(((one - other) ** 2).sum()) for other in whole] for one in whole]
        scores = [sum(sorted(of_one[:client] + of_one[client + 1 :])[: 10 - 2 - 2]) for client, of_one in enumerate(exact)]
        chosen = part(build("krum").combine, CombineRows).mix(squares_of(torch.from_numpy(rows)))
        assert int(chosen.argmax()) == scores.index(min(scores)), draw


def test_distances_of_updates_that_differ_little_have_all_their_digits() -> None:
    rows = torch.from_numpy((700 + np.random.default_rng(0).normal(0, 1e-3, (4, 5000))).astype(np.float32))
    exact = sum((Fraction(float(a)) - Fraction(float(b))) ** 2 for a, b in zip(rows[0], rows[3], strict=True))
    assert abs(float(squares_of(rows)[0, 3]) / float(exact) - 1) < 1e-13


# --- mixing with nearest neighbours


def test_each_update_becomes_the_mean_of_its_nearest_neighbours() -> None:
    """Two neighbours beside itself: f = 1 of four."""
    rows = double([(0.0,), (1.0,), (3.0,), (100.0,)])
    means = rules.mixed(_rows.neighbours(squares_of(rows), 0.25), rows)
    close(means, [(4 / 3,), (4 / 3,), (4 / 3,), (104 / 3,)])


@pytest.mark.parametrize(
    "name", ["median", "trimmed_mean", "krum", "multi_krum", "bulyan", "geometric_median", "centered_clipping"]
)
def test_a_rule_after_mixing_is_the_rule_on_the_mixed_updates(name: str) -> None:
    """Distances between mixtures come from those between updates; here they are computed from the mixtures themselves."""
    rows = double(np.random.default_rng(1).normal(0, 1e-3, (11, 40)))
    rows[3] += 5
    means = rules.mixed(_rows.neighbours(squares_of(rows), 0.2), rows)
    torch.testing.assert_close(
        direction(rows, name, mix="nnm", fraction=0.2), direction(means, name, fraction=0.2), rtol=1e-9, atol=1e-12
    )


# --- ties, few clients, too few clients

RULES = {
    name: build(name, **({"fraction": 0.2} if name == "bulyan" else {}))
    for name in ("median", "trimmed_mean", "krum", "multi_krum", "bulyan", "geometric_median", "centered_clipping")
}


@pytest.mark.parametrize("mix", ["none", "nnm"])
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("num_clients", [1, 2, 3, 4])
def test_equal_updates_give_this_update_however_few_they_are(name: str, num_clients: int, mix: str) -> None:
    """A round may have fewer clients than its cohort, since updates that are not finite are left out."""
    close(direction(double([(1.0, -2.0, 0.0)] * num_clients), name, mix=mix), (1.0, -2.0, 0.0))


def test_of_equal_scores_the_client_with_the_lowest_number_is_chosen() -> None:
    rows = double([(5.0,), (1.0,), (2.0,), (1.0,), (2.0,)])
    assert int(part(RULES["krum"].combine, CombineRows).mix(squares_of(rows)).argmax()) == 1
    assert choose(squares_of(rows), 1).tolist() == [1, 2, 3]
    close(near_median(double([(0.0,), (2.0,), (1.0,), (1.0,)]), 3), (2 / 3,))


@pytest.mark.parametrize(
    ("name", "num_clients", "fraction", "least"),
    [("krum", 4, 0.25, 5), ("krum", 5, 0.25, None), ("multi_krum", 10, 0.4, 11), ("bulyan", 6, 0.2, 7), ("bulyan", 7, 0.2, None)],
)
def test_a_cohort_that_is_too_small_is_named(name: str, num_clients: int, fraction: float, least: int | None) -> None:
    fault = part(build(name, fraction=fraction).combine, CombineRows).fault(num_clients)
    if least is None:
        assert fault is None
    else:
        assert f"algorithm.fraction: {fraction} of {num_clients} clients in a round are f = " in fault
        assert f" = {least} clients; lower it, or raise cohort.size" in fault


@pytest.mark.parametrize("name", RULES)
def test_a_rule_does_not_change_the_updates_that_it_gets(name: str) -> None:
    rows = double(SEVEN)
    direction(rows, name)
    assert rows.tolist() == double(SEVEN).tolist()


@pytest.mark.parametrize("name", [name for name in RULES if name != "bulyan"])
def test_the_order_of_clients_does_not_matter(name: str) -> None:
    """In the last choices of Bulyan, two updates that are nearest to each other have the same score."""
    rows = double(SEVEN)
    torch.testing.assert_close(direction(rows.flip(0), name), direction(rows, name), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_an_attacker_far_away_moves_the_direction_little(name: str) -> None:
    """The mean would move by 1e6 / 7."""
    rows = double(SEVEN)
    rows[-1] = 1e6
    assert (direction(rows, name, fraction=0.2) - double(HONEST).mean(0)).abs().max() < 0.1
