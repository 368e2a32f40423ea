import csv
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import h5py
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import flora_hpc
from flora_hpc.cli import _table, app
from flora_hpc.cli._table import OPTIONAL, columns, show_table
from flora_hpc.cli.show import earlier_ranks
from flora_hpc.errors import UserError
from flora_hpc.records import views
from flora_hpc.records.hdf5file import Writer
from flora_hpc.records.schema import RANKS, TOPOLOGY, Rows
from flora_hpc.records.summary import accuracy_lines, summary
from tests.contracts.known_helpers import round_record, run_info

TABLES = ["rounds", "ranks", "clients", "topology"]
RECORDS = [round_record(0, accuracy=0.25), round_record(1), round_record(2, accuracy=0.75, num_rejected=1)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three rounds; accuracy is unknown in the second; in the third one client was left out, its update not being finite."""
    writer = Writer(tmp_path / "run.h5", run_info())
    for record in RECORDS:
        writer.add(record)
    writer.close("finished")
    return tmp_path


def show(*arguments: object, columns: int = 300) -> str:
    runner = CliRunner(env={"COLUMNS": str(columns)})
    result = runner.invoke(app, ["show", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def rows_of(text: str) -> list[list[str]]:
    """The cells of a printed table; its rows begin with a number, and two spaces or more stand between cells."""
    return [re.split(" {2,}", line.strip()) for line in text.splitlines() if line.strip()[:1].isdigit()]


def not_json(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is not JSON")


# --- for people


def test_the_summary_repeats_warnings_and_what_the_screen_lost(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run.h5", replace(run_info(), warnings=("one test image", "two classes"), left_out={"no image": 2}))
    writer.add(round_record(0))
    writer.note_screen("standard output: lost (Broken pipe)")
    writer.close("finished")
    shown = " ".join(show(tmp_path).split())
    assert "left out 2 files: no image" in shown
    assert "warnings one test image; two classes" in shown
    assert "screen standard output: lost (Broken pipe)" in shown


def test_the_summary_says_what_was_run_and_what_came_out(folder: Path) -> None:
    shown = show(folder)
    for words in (
        "finished",
        "flora-tiny",
        "flora, 25 trained numbers",
        "digits, iid over 40 clients",
        "2 ranks by mpich on 2 hosts, backend mpi, cpu x 4 threads",
        "finished, 2 rounds",
        "1.50 s (imports and connections 1.00 s, data and model 250.0 ms, features 125.0 ms, checks and",
        "none, all ranks have as much work",
        "100% (mean work of ranks / the slowest's, by round)",
        "1.0 GB (rank 0)",
        "0.2500 → 0.7500",
        "(best 0.7500 in round 2)",
        "0.7500 → 0.2500  (3.0 times smaller)",  # the error
        "600 bytes up, 600 bytes down",  # 2 rounds x 3 clients x 100 bytes
        "12.0 kB handed to collectives",  # 3 rounds x 4,000 bytes, round 0 included
        "1 client update was not finite or too large and was left out",
    ):
        assert words in shown


@pytest.mark.parametrize(
    ("after", "error"), [(0.1031, "0.8997 → 0.8969"), (0.15, "0.8997 → 0.8500  (1.1 times smaller)"), (0.09, None)]
)
def test_an_error_that_hardly_falls_has_no_factor(after: float, error: str | None) -> None:
    rounds = np.concatenate([round_record(number, accuracy=accuracy).row for number, accuracy in enumerate((0.1003, after))])
    assert accuracy_lines(rounds).get("test error") == error


def test_the_file_and_its_directory_show_the_same(folder: Path) -> None:
    assert show(folder, "--rounds") == show(folder / "run.h5", "--rounds")


def test_a_run_that_is_still_written_can_be_shown(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run.h5", run_info())
    writer.add(round_record(0, accuracy=0.25))
    shown = show(tmp_path)
    writer.close("finished")
    assert "running" in shown


def test_seconds_of_files_that_knew_fewer_phases_are_split_too() -> None:
    rounds = np.concatenate([record.row for record in RECORDS[1:]])
    kept = [name for name in rounds.dtype.names if name not in ("batch_seconds", "sum_seconds")]
    legend = views.time_split(rounds[kept], 40).plain.splitlines()[1]
    assert legend.startswith("■ train 38%  ■ wait 12%")


def test_a_directory_is_named_as_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Brackets mean something to rich."""
    monkeypatch.chdir(folder)
    Path("sweep[lr]").mkdir()
    Path("run.h5").rename("sweep[lr]/run.h5")
    assert "sweep[lr]" in show("sweep[lr]")


@pytest.mark.parametrize(
    ("table", "num_rows", "row"),
    [
        (
            "rounds",
            3,
            "2, 3, 1, 30, 1.25, 0.75, 300 bytes, 300 bytes, 4.0 kB, "
            "62.5 ms, 375.0 ms, 62.5 ms, 125.0 ms, 62.5 ms, 31.2 ms, 250.0 ms, 31.2 ms, 1.00 s",
        ),
        ("ranks", 6, "2, 1, 1, 62.5 ms, 375.0 ms, 62.5 ms, 125.0 ms, 62.5 ms, 31.2 ms, 250.0 ms, 31.2 ms, 1.00 s, 2.0 kB, 1.0 GB"),
        ("clients", 6, "2, 1, 1, 0, 10, 2, 10, 1.25, 0.5, 250.0 ms, 100 bytes, 100 bytes"),
        ("topology", 2, "1, node2, 0, cpu, 4"),
    ],
)
def test_a_table_has_all_rows_and_columns(folder: Path, table: str, num_rows: int, row: str) -> None:
    """A file or another program has no width to keep to."""
    found = rows_of(show(folder, f"--{table}", columns=80))
    assert len(found) == num_rows
    assert row.split(", ") in found


def test_what_is_not_known_is_a_dash(folder: Path) -> None:
    """In round 0 nothing was trained; in round 1 nothing was evaluated."""
    assert [row.count("-") for row in rows_of(show(folder, "--rounds"))] == [1, 1, 0]


@pytest.mark.parametrize("table", ["row", "ranks", "clients"])
def test_a_narrow_terminal_gets_fewer_columns_and_is_told_which(table: str) -> None:
    text, rows = io.StringIO(), getattr(RECORDS[2], table)
    show_table(Console(file=text, width=80, force_terminal=True, color_system=None), rows)
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    shown, hidden = text.getvalue().split("not shown for want of width: ")
    names = set(re.findall(r"\w+", hidden.split("(--csv")[0]))
    assert names < set(rows.dtype.names)
    assert "round" not in names
    unused = (*views.PER_CLIENT, *OPTIONAL, "validation_accuracy")  # of options that the run did not use
    asked = [name for name in rows.dtype.names if name not in unused]
    assert {len(row) for row in rows_of(shown)} == {len(asked) - len(names)}


# --- for programs


def test_json_holds_every_table_and_the_attributes(folder: Path) -> None:
    shown = json.loads(show(folder, "--json"))
    assert set(shown) == {"attributes", *TABLES}
    assert (shown["attributes"]["status"], shown["attributes"]["world_size"]) == ("finished", 2)
    assert {name: len(shown[name]) for name in TABLES} == {"rounds": 3, "ranks": 6, "clients": 6, "topology": 2}
    assert shown["topology"][1] == {"rank": 1, "host": "node2", "local_rank": 0, "device": "cpu", "num_threads": 4}


def test_json_adds_up_to_what_the_file_holds(folder: Path) -> None:
    shown = json.loads(show(folder, "--json"))
    with h5py.File(folder / "run.h5") as file:
        for table, column in (("rounds", "uplink_bytes"), ("ranks", "collective_bytes"), ("clients", "num_examples")):
            assert sum(row[column] for row in shown[table]) == file[table][column].sum()
            assert set(shown[table][0]) == set(file[table].dtype.names)
    assert sum(row["uplink_bytes"] for row in shown["clients"]) == sum(row["uplink_bytes"] for row in shown["rounds"]) == 600


def test_json_turns_nan_and_infinity_into_null(folder: Path) -> None:
    """JSON has neither. The update of the last client was infinite and its loss NaN."""
    shown = json.loads(show(folder, "--json"), parse_constant=not_json)
    assert [row["test_accuracy"] for row in shown["rounds"]] == [0.25, None, 0.75]
    assert [row["train_loss"] for row in shown["rounds"]] == [None, 1.25, 1.25]
    assert (shown["clients"][-1]["train_loss"], shown["clients"][-1]["update_norm"]) == (None, None)


def test_json_of_one_table(folder: Path) -> None:
    assert list(json.loads(show(folder, "--rounds", "--json"))) == ["attributes", "rounds"]


@pytest.mark.parametrize("table", TABLES)
def test_csv_has_every_column_and_row(folder: Path, table: str) -> None:
    rows = list(csv.DictReader(io.StringIO(show(folder, f"--{table}", "--csv"))))
    with h5py.File(folder / "run.h5") as file:
        assert len(rows) == len(file[table])
        assert list(rows[0]) == list(file[table].dtype.names)


def test_csv_holds_the_values(folder: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(show(folder, "--rounds", "--csv"))))
    assert [row["test_accuracy"] for row in rows] == ["0.25", "", "0.75"]
    assert sum(int(row["uplink_bytes"]) for row in rows) == 600


def test_only_the_last_rows(folder: Path) -> None:
    shown = json.loads(show(folder, "--json", "--last", 2))
    assert [row["round"] for row in shown["rounds"]] == [1, 2]
    assert [row["client"] for row in shown["clients"]] == [1, 2]
    assert len(show(folder, "--rounds", "--csv", "--last", 1).splitlines()) == 2
    assert len(json.loads(show(folder, "--json", "--last", 100))["rounds"]) == 3


def test_a_long_table_is_written_in_slices(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which nobody sees. Two rows at a time, where tables have 2, 3 and 6."""
    whole = show(folder, "--json"), *(show(folder, f"--{table}", "--csv") for table in TABLES)
    made: list[int] = []
    monkeypatch.setattr(_table, "SLICE_ROWS", 2)
    monkeypatch.setattr(_table, "columns", lambda rows: [made.append(len(rows)), columns(rows)][1])
    assert (show(folder, "--json"), *(show(folder, f"--{table}", "--csv") for table in TABLES)) == whole
    assert max(made) == 2
    assert sum(made) == 2 * (3 + 6 + 6 + 2)


@pytest.mark.parametrize("table", TABLES)
def test_a_table_without_rows_is_written_too(tmp_path: Path, table: str) -> None:
    Writer(tmp_path / "run.h5", run_info(topology=np.zeros(0, TOPOLOGY))).close("stopped")
    assert json.loads(show(tmp_path, "--json"))[table] == []
    assert show(tmp_path, f"--{table}", "--csv").count("\n") == 1


# --- mistakes


def test_csv_needs_the_name_of_a_table(folder: Path) -> None:
    with pytest.raises(UserError, match="--csv: name one table: --rounds"):
        show(folder, "--csv")


def test_a_missing_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path / 'nowhere'}: holds no run.*give a run directory"):
        show(tmp_path / "nowhere")


# --- parquet


def test_parquet_keeps_values_and_types(folder: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    show(folder, "--clients", "--parquet", folder / "clients.parquet")
    table = parquet.read_table(folder / "clients.parquet")
    with h5py.File(folder / "run.h5") as file:
        for name in file["clients"].dtype.names:
            np.testing.assert_array_equal(table[name].to_numpy(), file["clients"][name])
            assert table[name].to_numpy().dtype == file["clients"].dtype[name]


def test_parquet_without_pyarrow_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"--parquet needs pyarrow, which is not installed: pip install 'flora-hpc\[parquet\]'"):
        show(folder, "--clients", "--parquet", folder / "clients.parquet")


def test_many_rows_are_not_printed_unasked(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run.h5", run_info())
    for number in range(3):
        writer.add(round_record(number, num_clients=600))
    writer.close("finished")
    assert len(rows_of(show(tmp_path, "--clients"))) == 1000
    assert len(rows_of(show(tmp_path, "--clients", "--last", 1100))) == 1100


def test_ranks_of_a_run_that_went_on_on_another_number_are_all_told() -> None:
    ranks = np.zeros(6, RANKS)
    ranks["round"], ranks["rank"] = [0, 0, 1, 1, 2, 3], [0, 1, 0, 1, 0, 0]
    assert earlier_ranks(ranks) == "; 2 until round 1"
    assert earlier_ranks(ranks[:4]) == ""
    assert earlier_ranks(ranks[:0]) == ""


def test_where_there_is_no_colour_shares_are_words(folder: Path) -> None:
    rows = flora_hpc.open_run(folder).tables["rounds"]
    plain, coloured = (Console(color_system=system, width=60, force_terminal=True) for system in (None, "truecolor"))
    told = [_text(console, rows) for console in (plain, coloured)]
    assert ["█" in text for text in told] == [False, True]
    assert all(re.search(r"train \d", text) for text in told)


def _text(console: Console, rows: Rows) -> str:
    with console.capture() as caught:
        console.print(summary(console, rows, {}, "a run"))
    return caught.get()


def test_a_run_that_was_interrupted_says_how_to_go_on() -> None:
    assert views.ending("interrupted", Path("runs/a")) == "in runs/a; the same command with --resume --out runs/a goes on"
    assert views.ending("finished", Path("runs/a")) == "in runs/a"
