"""The table of a study for other programs: CSV, LaTeX, JSON."""

import csv
import io
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flora_hpc import yamltext
from flora_hpc.studies import formats, table
from flora_hpc.studies.statistics import settings
from flora_hpc.studies.table import Column
from tests.studies import made_studies
from tests.studies.made_studies import point

GROUPS = settings(made_studies.points())
VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats(allow_nan=False)
    | st.text(max_size=12)
    | st.lists(st.text(max_size=5))
)


def lines_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_has_four_columns_for_a_spread() -> None:
    rows = lines_of(formats.as_csv([*table.of_settings(GROUPS), *table.against(GROUPS, {"method.name": "flora"})]))
    assert [row["method.name"] for row in rows] == ["flora", "flora", "fedca", "fedca"]
    assert float(rows[0]["final_test_accuracy_mean"]) == pytest.approx(0.6)
    assert float(rows[0]["final_test_accuracy_std"]) == pytest.approx(0.1)
    low, high = (float(rows[0][f"final_test_accuracy_{end}"]) for end in ("low", "high"))
    assert (low, high) == (
        pytest.approx(0.6 - 4.302652729911275 * 0.1 / 3**0.5),
        pytest.approx(0.6 + 4.302652729911275 * 0.1 / 3**0.5),
    )
    assert [row["pairs"] for row in rows] == ["", "", "3", "3"]
    assert [row["difference_mean"] != "" for row in rows] == [False, False, True, True]


def test_csv_leaves_empty_what_one_seed_cannot_say() -> None:
    (row,) = lines_of(formats.as_csv(table.of_settings(settings([point(0.5, {"a": 1, "seed": 0})]))))
    assert (row["n"], row["final_test_accuracy_mean"], row["final_test_accuracy_std"]) == ("1", "0.5", "")
    assert (row["final_test_accuracy_low"], row["final_test_accuracy_high"]) == ("", "")


@given(st.lists(VALUES, min_size=1, max_size=4))
def test_csv_gives_back_the_values_of_keys(values: list[Any]) -> None:
    rows = [point(0.5, {"key": value, "place": place, "seed": 0}) for place, value in enumerate(values)]
    read = [yamltext.value(row["key"]) for row in lines_of(formats.as_csv(table.of_settings(settings(rows))))]
    assert [(type(value), value) for value in read] == [(type(value), value) for value in values]


def test_json_has_objects_for_spreads_and_null_for_nan() -> None:
    groups = settings([point(0.5, {"a": 1, "seed": 0})])
    (row,) = formats.as_rows([*table.of_settings(groups), *table.against(groups, {"a": 1})])
    json.dumps(row, allow_nan=False)
    assert row["final_test_accuracy"] == {"n": 1, "mean": 0.5, "std": None, "low": None, "high": None}
    assert (row["n"], row["difference"], row["pairs"]) == (1, None, None)


def test_people_see_mean_deviation_and_interval() -> None:
    cells = {column.name: column.cells for column in formats.texts(table.of_settings(GROUPS))}
    assert cells["final_test_accuracy"][0] == "0.6000 ± 0.1000"
    assert cells["interval"][0] == "[0.3516, 0.8484]"
    assert (cells["best_test_accuracy"][0], cells["uplink_bytes"][0]) == ("0.6100", "1.5 kB")
    assert "num_points" not in cells


def test_people_see_how_many_points_are_missing() -> None:
    groups = settings([*made_studies.points(), made_studies.Point("x", {"method.name": "flora", "client.lr": 0.01, "seed": 3})])
    cells = {column.name: column.cells for column in formats.texts(table.of_settings(groups))}
    assert (cells["n"], cells["num_points"]) == (("3", "3", "3", "3"), ("4", "3", "3", "3"))


def test_one_seed_has_neither_deviation_nor_interval() -> None:
    cells = {column.name: column.cells for column in formats.texts(table.of_settings(settings([point(0.5, {"a": 1})])))}
    assert (cells["final_test_accuracy"], cells["interval"]) == (("0.5000",), ("-",))


def test_differences_have_signs() -> None:
    cells = {column.name: column.cells for column in formats.texts(table.against(GROUPS, {"client.lr": 0.01}))}
    assert cells["difference"] == ("reference", "-0.1500", "reference", "+0.0200")
    assert cells["difference_interval"][1].startswith("[-0.2")
    bytes_less = settings([point(0.5, {"a": a, "seed": seed}, uplink_bytes=3000 - 1000 * a) for a in (0, 1) for seed in (0, 1)])
    cells = {column.name: column.cells for column in formats.texts(table.against(bytes_less, {"a": 0}, "uplink_bytes"))}
    assert cells["difference"] == ("reference", "-1.0 kB")


# --- LaTeX


def test_latex_is_a_table_of_booktabs() -> None:
    text = formats.as_latex([*table.of_settings(GROUPS), *table.against(GROUPS, {"method.name": "flora"})], "to 50 %\nof it")
    assert r"\begin{tabular}{llrrrrrrrr}" in text
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}")] == [1] * 4
    assert r"test accuracy (\%) & 95 \% interval" in text
    assert (
        r"flora & 0.01 & $3$ & $60.00 \pm 10.00$ & $[35.16, 84.84]$ & $61.00$ & $1.5\,\mathrm{kB}$ & reference & -- & -- \\" in text
    )
    assert r"& $+2.00$ & $[+2.00, +2.00]$ & $3$ \\" in text
    assert text.splitlines()[1] == "% to 50 % of it"


def test_a_number_of_latex_has_no_comma_that_makes_a_gap() -> None:
    assert "$1{,}500$" in formats.as_latex([Column("n", "n", (1500,))])


def body(text: str) -> list[str]:
    return text.partition("\\midrule\n")[2].partition("\\bottomrule")[0].splitlines()


SPECIAL = re.compile(r"(?<!\\)[&%$#_^~<>|\"]")


@given(st.lists(st.text(max_size=12) | st.lists(st.text(max_size=4)), min_size=1, max_size=3))
def test_latex_has_as_many_cells_whatever_the_values_of_keys(values: list[Any]) -> None:
    rows = [point(0.5, {"key": value, "place": place, "seed": 0}) for place, value in enumerate(values)]
    lines = body(formats.as_latex(table.of_settings(settings(rows))))
    assert len(lines) == len(values)
    for line in lines:
        assert len(re.findall(r"(?<!\\)&", line)) == 6
        assert line.endswith(r" \\")
        assert not line.startswith("[")  # it would be an option of the line before
        cell = line.partition(" & $")[0]
        assert len(re.findall(r"(?<!\\){", cell)) == len(re.findall(r"(?<!\\)}", cell))
        assert len(SPECIAL.findall(cell)) == 1  # the & before `place`


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("client.batch_size", r"client.batch\_size"),
        ("a\\b", r"a\textbackslash{}b"),
        ("{}, 50% & $1 #2", r"\{\}, 50\% \& \$1 \#2"),
        ("a~b^c", r"a\textasciitilde{}b\textasciicircum{}c"),
        ("[a, b]", "{[}a, b]"),
    ],
)
def test_letters_of_latex_are_printed_as_they_are(text: str, written: str) -> None:
    assert formats.latex(text) == written
