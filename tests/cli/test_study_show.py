"""`flora-hpc study show`: what it prints for people and for programs."""

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from rich.console import Console

from flora_hpc.cli._study_show import parse_reference
from flora_hpc.cli._study_table import print_table
from flora_hpc.errors import UserError
from flora_hpc.records.hdf5file import Writer
from flora_hpc.records.study import Point, write_row
from flora_hpc.studies import table
from flora_hpc.studies.statistics import settings
from flora_hpc.studies.table import Column
from tests.conftest import refusal
from tests.contracts.known_helpers import CONFIG, round_record, run_info
from tests.studies import made_studies
from tests.studies.made_studies import point

Invoke = Callable[..., str]
FORMATS = ([], ["--points"], ["--against", "method.name=flora"], ["--csv"], ["--latex"], ["--json"], ["--points", "--csv"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve points, of which two failed and one is waiting."""
    rows = made_studies.points()
    rows[2] = replace(rows[2], status="failed", message="client.lr: [bold] is not\na number")
    rows[7] = replace(rows[7], status="failed", message="out of memory")
    rows[11] = Point(rows[11].name, rows[11].keys)
    return made_studies.write(tmp_path / "sweep", rows)


def not_json(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is not JSON")


def cells_of(text: str) -> list[list[str]]:
    return [re.split(" {2,}", line.strip()) for line in text.splitlines()]


def test_a_table_has_a_row_a_setting_with_counts_above_and_failures_below(folder: Path, invoke: Invoke) -> None:
    lines = invoke("study", "show", folder).splitlines()
    assert lines[0] == "12 points in 4 settings: 1 waiting, 9 finished, 2 failed"
    heads, *rows = cells_of("\n".join(lines[1:6]))
    assert heads == ["method.name", "client.lr", "n", "of", "test accuracy", "95 % interval", "best", "uplink"]
    assert rows[1] == ["flora", "0.1", "3", "3", "0.4500 ± 0.0500", "[0.3258, 0.5742]", "0.4600", "1.5 kB"]
    assert rows[0][2:5] == ["2", "3", "0.5500 ± 0.0707"]
    assert lines[6:] == [
        "failed: flora_0.01_2 (method.name=flora, client.lr=0.01, seed=2): client.lr: [bold] is not a number",
        "failed: fedca_0.01_1 (method.name=fedca, client.lr=0.01, seed=1): out of memory",
    ]


@pytest.mark.parametrize("options", FORMATS)
def test_results_alone_decide_what_is_printed(options: list[str], tmp_path: Path, invoke: Invoke) -> None:
    """Not seconds, ranks, the order in which points ended, nor the directory."""
    one = made_studies.write(tmp_path / "one", made_studies.points(num_ranks=1, round_seconds=1.5, setup_seconds=0.25))
    other = made_studies.write(tmp_path / "other" / "sweep", made_studies.points(num_ranks=4, round_seconds=9.0, train_seconds=7.0))
    for row in reversed(made_studies.points(num_ranks=3, round_seconds=2.0)):
        write_row(other, row)
    assert invoke("study", "show", one, *options) == invoke("study", "show", other, *options)
    if "--latex" not in options:
        assert invoke("study", "show", one, *options, "--seconds") != invoke("study", "show", other, *options, "--seconds")


def test_differences_are_paired_by_seed(folder: Path, invoke: Invoke) -> None:
    lines = invoke("study", "show", folder, "--against", "method.name=flora").splitlines()
    rows = cells_of("\n".join(lines[1:6]))
    assert rows[0][-3:] == ["difference", "95 % interval", "pairs"]
    assert rows[1][-3:] == ["reference", "-", "-"]
    assert rows[3][-3:] == ["+0.0200", "-", "1"]  # seed 0 alone finished in both
    assert rows[4][-1] == "2"
    assert "difference to method.name=flora, paired by seed" in lines
    assert invoke("study", "show", folder, "--against", "method=flora").splitlines() == lines  # short, as in the points' names


def test_another_metric_takes_the_place_of_test_accuracy(tmp_path: Path, invoke: Invoke) -> None:
    folder = made_studies.write(tmp_path, made_studies.points(final_validation_accuracy=0.25, final_personal_accuracy=0.75))
    heads, row, *_ = cells_of(invoke("study", "show", folder, "--metric", "validation_accuracy"))[1:]
    assert heads[3:] == ["validation accuracy", "95 % interval", "test accuracy", "best", "personal", "uplink"]
    assert row[3:] == ["0.2500 ± 0.0000", "[0.2500, 0.2500]", "0.6000", "0.6100", "0.7500", "1.5 kB"]


def test_points_have_their_status(folder: Path, invoke: Invoke) -> None:
    heads, *rows = cells_of(invoke("study", "show", folder, "--points"))[1:14]
    assert heads[:5] == ["name", "method.name", "client.lr", "seed", "status"]
    assert rows[0] == ["flora_0.01_0", "flora", "0.01", "0", "finished", "0.5000", "0.5100", "1.5 kB", "5", "4"]
    assert rows[11] == ["fedca_0.1_2", "fedca", "0.1", "2", "waiting", "-", "-", "-", "-", "-"]
    assert len(invoke("study", "show", folder, "--points", "--csv").splitlines()) == 13


def test_seconds_on_request(tmp_path: Path, invoke: Invoke) -> None:
    folder = made_studies.write(tmp_path, made_studies.points(num_ranks=2, train_seconds=1.5, round_seconds=3.0))
    heads, row, *_ = cells_of(invoke("study", "show", folder, "--seconds"))[1:]
    assert dict(zip(heads, row, strict=True)) | {"training": "1.50 s", "all rounds": "3.00 s", "ranks": "2"} == dict(
        zip(heads, row, strict=True)
    )


def test_json_is_json(folder: Path, invoke: Invoke) -> None:
    shown = json.loads(invoke("study", "show", folder, "--json", "--against", "client.lr=0.01"), parse_constant=not_json)
    assert shown["points"] == {"waiting": 1, "running": 0, "finished": 9, "stopped": 0, "failed": 2}
    assert (shown["metric"], shown["against"]) == ("final_test_accuracy", {"client.lr": 0.01})
    assert [row["keys"] for row in shown["rows"]][1] == {"method.name": "flora", "client.lr": 0.1}
    assert shown["rows"][1]["difference"]["mean"] == pytest.approx(-0.125)
    assert [point["message"] for point in shown["failed"]] == ["client.lr: [bold] is not\na number", "out of memory"]
    points = json.loads(invoke("study", "show", folder, "--json", "--points"), parse_constant=not_json)["rows"]
    assert points[11]["keys"] == {"method.name": "fedca", "client.lr": 0.1, "seed": 2}
    assert points[11]["final_test_accuracy"] is None


def test_csv_is_utf8_with_a_line_a_setting(tmp_path: Path, invoke: Invoke) -> None:
    rows = [point(0.5, {"data.caption": caption, "seed": 0}) for caption in ("ein Foto, {} genannt", "größer", None)]
    lines = list(csv.DictReader(io.StringIO(invoke("study", "show", made_studies.write(tmp_path, rows), "--csv"))))
    assert [line["data.caption"] for line in lines] == ["ein Foto, {} genannt", "größer", "null"]


def test_brackets_in_values_and_messages_are_printed(tmp_path: Path, invoke: Invoke) -> None:
    """They mean something to rich."""
    rows = [point(0.5, {"method.targets": ["[red]x", "text.q"], "seed": 0}, status="failed", message="[/] [bold]no[/bold]")]
    text = invoke("study", "show", made_studies.write(tmp_path, rows))
    assert '["[red]x", text.q]' in text
    assert "[/] [bold]no[/bold]" in text


# --- width


def printed(columns: list[Column], width: int, metric: str = table.DEFAULT) -> str:
    text = io.StringIO()
    print_table(Console(file=text, width=width, force_terminal=True, color_system=None), columns, metric)
    return text.getvalue()


@pytest.mark.parametrize("metric", ["final_test_accuracy", "best_test_accuracy", "final_validation_accuracy"])
def test_a_terminal_of_80_columns_keeps_the_metric_and_names_what_it_hides(metric: str) -> None:
    groups = settings(made_studies.points(final_validation_accuracy=0.5, final_personal_accuracy=0.5))
    columns = [*table.of_settings(groups, metric), *table.against(groups, {"method.name": "flora"}, metric)]
    wide, narrow = printed(columns, 200, metric), printed(columns, 80, metric)
    assert "not shown" not in wide
    rows, hidden = narrow.split("not shown for want of width: ")
    assert max(map(len, rows.splitlines())) <= 80
    assert table.HEADINGS[metric][0] in rows
    assert "difference" in rows
    assert "0.0000" in rows or "±" in rows
    assert hidden.startswith("uplink, ")
    assert hidden.endswith("(--json has all)\n")


def test_a_pipe_gets_every_column_on_one_line(folder: Path, invoke: Invoke) -> None:
    text = invoke("study", "show", folder, "--seconds", "--against", "method.name=flora")
    assert "not shown" not in text
    assert len({len(row) for row in cells_of(text)[1:6]}) == 1


# --- several runs


def make_run(folder: Path, seed: int, lr: float, accuracy: float) -> Path:
    folder.mkdir()
    config = CONFIG.replace("seed: 7", f"seed: {seed}") + f"client: {{lr: {lr}}}\n"
    writer = Writer(folder / "run.h5", run_info(config=config, seed=seed))
    writer.add(round_record(0, 0.1))
    writer.add(round_record(1, accuracy))
    writer.close("finished")
    return folder


def test_runs_are_shown_as_a_study(tmp_path: Path, invoke: Invoke) -> None:
    runs = [make_run(tmp_path / f"{lr}-{seed}", seed, lr, lr + seed / 10) for lr in (0.5, 0.25) for seed in (0, 1)]
    lines = invoke("study", "show", *runs).splitlines()
    assert lines[0] == "4 points in 2 settings: 4 finished"
    rows = [cells[:3] for cells in cells_of("\n".join(lines[2:4]))]
    assert rows == [["0.25", "2", "0.3000 ± 0.0707"], ["0.5", "2", "0.5500 ± 0.0707"]]  # by size, as a shell does not sort them
    best = json.loads(invoke("study", "best", *runs, "--metric", "test_accuracy", "--json"))["best"]
    assert [one["keys"] for one in best] == [{"client.lr": 0.5}]
    assert "study.yaml: cannot be read" in refusal(
        "study", "best", *runs, "--metric", "test_accuracy", "--then", 3, "-o", tmp_path / "next.yaml"
    )


def test_a_run_left_out_is_noted_beside_the_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from flora_hpc.cli._study_show import open_all

    open_all([make_run(tmp_path / name, 0, 0.5, 0.5) for name in ("a", "b")])
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "note: b has the settings and the seed of a, and is left out\n")


# --- mistakes


def test_mistakes_are_told_in_a_sentence(folder: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "run", 0, 0.5, 0.5)
    show = ("study", "show", folder)
    assert "--metric test_acuracy: there is no such column of results; did you mean 'test_accuracy'?" in refusal(
        *show, "--metric", "test_acuracy"
    )
    assert refusal(*show, "--csv", "--json") == "--csv, --latex, --json: choose one of them"
    assert "leave one of the two out" in refusal(*show, "--points", "--against", "method.name=flora")
    assert f"{folder}: is a study; show it alone" in refusal(*show, tmp_path / "run")
    assert f"name the runs: flora-hpc study show {tmp_path}/*" in refusal("study", "show", tmp_path)
    (tmp_path / "empty").mkdir()
    assert "empty: holds no study" in refusal("study", "show", tmp_path / "empty")
    assert "nowhere: holds no study" in refusal("study", "show", tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["flora", "method.name=", "=flora", ""])
def test_a_reference_is_a_key_and_a_value(text: str) -> None:
    with pytest.raises(UserError, match=f"--against {text}: write KEY=VALUE, for example --against method.name=flora"):
        parse_reference(text)


def test_references_have_values_as_overrides_have() -> None:
    assert parse_reference("a=1e-3, b.c=x, y,d=[p, q],e=null") == {"a": 1e-3, "b.c": "x, y", "d": ["p", "q"], "e": None}
