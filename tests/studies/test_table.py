"""Rows a setting, differences to a reference, and what is shown of them."""

import math
from typing import Any

import pytest

from flora_hpc.errors import UserError
from flora_hpc.records.study import NUMBERS
from flora_hpc.studies import table
from flora_hpc.studies.statistics import Setting, Spread, settings
from tests.studies import made_studies
from tests.studies.made_studies import point

GROUPS = settings(made_studies.points())  # flora 0.01, flora 0.1, fedca 0.01, fedca 0.1


def columns(groups: list[Setting], *arguments: Any) -> dict[str, tuple[Any, ...]]:
    return {column.name: column.values for column in table.of_settings(groups, *arguments)}


def differences(reference: dict[str, Any], groups: list[Setting] = GROUPS) -> list[Any]:
    column, pairs = table.against(groups, reference)
    assert pairs.values == tuple(value.n if isinstance(value, Spread) else None for value in column.values)
    return [round(value.mean, 9) if isinstance(value, Spread) else value for value in column.values]


def test_a_row_is_a_setting() -> None:
    values = columns(GROUPS)
    assert values["method.name"] == ("flora", "flora", "fedca", "fedca")
    assert values["client.lr"] == ("0.01", "0.1", "0.01", "0.1")
    assert values["n"] == values["num_points"] == (3, 3, 3, 3)
    assert [round(spread.mean, 9) for spread in values["final_test_accuracy"]] == [0.6, 0.45, 0.62, 0.64]
    assert [spread.mean for spread in values["uplink_bytes"]] == [1500] * 4


def test_what_no_point_measured_has_no_column() -> None:
    assert not {"final_validation_accuracy", "final_personal_accuracy", "chosen_test_accuracy"} & set(columns(GROUPS))
    measured = settings(made_studies.points(final_validation_accuracy=0.5))
    assert "final_validation_accuracy" in columns(measured)


def test_the_metric_has_a_column_even_where_nobody_measured_it() -> None:
    assert all(math.isnan(spread.mean) for spread in columns(GROUPS, "final_personal_accuracy")["final_personal_accuracy"])


def test_what_varies_from_run_to_run_is_there_only_on_request() -> None:
    assert not set(table.VARYING) & set(columns(GROUPS))
    assert set(table.VARYING) <= set(columns(GROUPS, table.DEFAULT, True))


def test_every_number_of_a_point_has_a_heading() -> None:
    assert set(table.HEADINGS) == set(NUMBERS)


def test_points_that_did_not_finish_count_in_the_total_alone() -> None:
    rows = [point(0.5, {"a": 1, "seed": 0}), point(0.9, {"a": 1, "seed": 1}, status="failed"), point(0.6, {"a": 1, "seed": 2})]
    values = columns(settings(rows))
    assert (values["n"], values["num_points"]) == ((2,), (3,))
    assert values["final_test_accuracy"][0].mean == pytest.approx(0.55)


def test_a_key_that_a_setting_lacks_is_no_value_and_null_is_one() -> None:
    rows = [point(0.5, {"a": None, "seed": 0}), point(0.5, {"b": [1, "x, y"], "seed": 0})]
    values = columns(settings(rows))
    assert (values["a"], values["b"]) == (("null", None), (None, '[1, "x, y"]'))


# --- differences


def test_a_reference_has_the_other_keys_of_each_setting() -> None:
    assert differences({"method.name": "flora"}) == ["reference", "reference", 0.02, 0.19]
    assert differences({"client.lr": 0.01}) == ["reference", -0.15, "reference", 0.02]


def test_a_reference_with_all_keys_is_that_of_all_settings() -> None:
    assert differences({"method.name": "flora", "client.lr": 0.01}) == ["reference", -0.15, 0.02, 0.04]


def test_one_setting_with_the_value_is_the_reference_of_settings_with_other_keys() -> None:
    """Such as zeroshot, which has no learning rate."""
    groups = [*GROUPS, *settings([point(0.4, {"method.name": "zeroshot", "seed": seed}) for seed in range(3)])]
    assert differences({"method.name": "zeroshot"}, groups) == [0.2, 0.05, 0.22, 0.24, "reference"]
    assert differences({"method.name": "flora"}, groups)[-1] is None


def test_a_whole_number_is_found_as_a_number_but_not_as_true() -> None:
    groups = settings([point(0.5, {"a": value, "seed": 0}) for value in (1.0, 2, True)])
    assert differences({"a": 1}, groups) == ["reference", 0, 0]
    assert differences({"a": True}, groups) == [0, 0, "reference"]


def test_a_key_that_a_setting_lacks_is_null_for_a_reference() -> None:
    rows = [{"attack.name": "zero"}, {}, {"attack.name": None, "lr": 1}, {"attack.name": "zero", "lr": 1}]
    groups = settings([point(0.5, keys | {"seed": 0}) for keys in rows])
    assert differences({"attack.name": None}, groups) == [0, "reference", "reference", 0]
    with pytest.raises(UserError, match=r"no setting has attack.name=one \(zero, null\)"):
        table.against(groups, {"attack.name": "one"})


def test_numbers_of_pairs_are_those_of_common_seeds() -> None:
    rows = made_studies.points()
    del rows[0]  # flora 0.01, seed 0
    column, pairs = table.against(settings(rows), {"method.name": "flora"})
    assert pairs.values == (None, None, 2, 3)
    assert column.values[2].mean == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        (
            {"method.nam": "flora"},
            "--against method.nam=flora: method.nam does not differ between the settings; did you mean 'method.name'?",
        ),
        ({"method.name": "flor"}, "no setting has method.name=flor; did you mean 'flora'? (flora, fedca)"),
        ({"seed": 0}, "seed does not differ between the settings (method.name, client.lr)"),
        ({"client.lr": "0.01"}, "no setting has client.lr=\"0.01\"; did you mean '0.01'? (0.01, 0.1)"),
    ],
)
def test_a_reference_that_is_not_there_is_told_with_those_that_are(reference: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        table.against(GROUPS, reference)
    assert sentence in str(error.value)


def test_values_that_are_there_but_not_together_are_told() -> None:
    groups = settings([point(0.5, {"a": 1, "b": 1, "seed": 0}), point(0.5, {"a": 2, "b": 2, "seed": 0})])
    with pytest.raises(UserError, match="--against a=1,b=2: no setting has all of these values"):
        table.against(groups, {"a": 1, "b": 2})


# --- metrics and points


def test_a_metric_may_be_named_in_short() -> None:
    assert table.metric_of("validation_accuracy") == "final_validation_accuracy"
    assert table.metric_of("best_test_accuracy") == "best_test_accuracy"
    assert table.metric_of("uplink_bytes") == "uplink_bytes"


@pytest.mark.parametrize("name", ["test_accurcy", "name", "keys", "status", ""])
def test_a_wrong_metric_is_told_with_the_names_that_there_are(name: str) -> None:
    with pytest.raises(UserError, match=f"--metric {name}: there is no such column of results.*num_rounds, final_test_accuracy"):
        table.metric_of(name)


def test_an_unknown_result_of_a_point_is_no_number() -> None:
    rows = [point(0.5, {"seed": 0}), made_studies.Point("w", {"seed": 1}), made_studies.Point("f", {"seed": 2}, "failed", "why")]
    values = {column.name: column.values for column in table.of_points(rows)}
    assert values["seed"] == ("0", "1", "2")
    assert values["final_test_accuracy"] == (0.5, None, None)
    assert (values["uplink_bytes"], values["best_round"], values["num_rounds"]) == (
        (1500, None, None),
        (4, None, None),
        (5, None, None),
    )
