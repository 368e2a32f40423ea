"""Runs as pandas frames."""

from pathlib import Path

import numpy as np
import pytest

import flora_hpc
from flora_hpc.errors import UserError
from flora_hpc.records import history
from flora_hpc.records.hdf5file import Writer
from flora_hpc.records.opened import open_run
from flora_hpc.records.schema import TABLES
from tests.contracts.known_helpers import round_record, run_info
from tests.records.old_files import SINCE_2, SINCE_3, SINCE_7, SINCE_8, SINCE_9, write_old


def test_a_run_that_is_being_written_opens_as_frames(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run.h5", run_info())
    records = [round_record(number, accuracy=number / 4) for number in range(2)]
    for record in records:
        writer.add(record)
    run = flora_hpc.open_run(tmp_path)
    assert run.status == "running"
    assert run.config["seed"] == run.attributes["seed"]
    for table, part in (("rounds", "row"), ("ranks", "ranks"), ("clients", "clients")):
        frame = getattr(run, table)
        expected = np.concatenate([getattr(record, part) for record in records])
        assert list(frame.columns) == list(TABLES[table].names or ())
        for column in frame.columns:
            np.testing.assert_array_equal(frame[column].to_numpy(), expected[column], f"{table} {column}")
    assert run.topology["host"].tolist() == [host.decode() for host in run_info().topology["host"]]
    writer.close("finished")


def test_what_it_is_fits_a_line(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run.h5", run_info())
    writer.add(round_record(0, accuracy=0.25))
    assert repr(flora_hpc.open_run(tmp_path)) == f"Run('{tmp_path}/run.h5': running, round 0 of 2, test accuracy 0.2500)"
    for number in (1, 2):
        writer.add(round_record(number, accuracy=number / 4))
    writer.close("finished")
    told = repr(flora_hpc.open_run(str(tmp_path)))
    assert told == f"Run('{tmp_path}/run.h5': finished, 2 rounds, test accuracy 0.2500 → 0.5000)"


def test_frames_are_not_mixed_up_with_later_rounds(tmp_path: Path) -> None:
    """A run is what the file held when it was opened."""
    writer = Writer(tmp_path / "run.h5", run_info())
    writer.add(round_record(0))
    run = flora_hpc.open_run(tmp_path)
    writer.add(round_record(1))
    writer.close("finished")
    assert (len(run.rounds), len(run.clients), run.status) == (1, 0, "running")


@pytest.mark.parametrize("schema", [1, 2, 4, 6, 7, 8])
def test_old_files_have_the_columns_of_today(tmp_path: Path, schema: int) -> None:
    """What their version did not measure is NaN; nothing else is changed."""
    records = [round_record(number, accuracy=number / 4) for number in range(3)]
    write_old(tmp_path / "run.h5", schema, records)
    run = flora_hpc.open_run(tmp_path)
    assert list(run.rounds.columns) == list(TABLES["rounds"].names or ())
    lacking = (
        SINCE_9
        | (SINCE_8 if schema < 8 else set())
        | (SINCE_7 if schema < 7 else set())
        | (SINCE_3 if schema < 3 else set())
        | (SINCE_2 if schema == 1 else set())
    )
    assert {name for name in lacking if run.rounds[name].isna().all()} == lacking
    assert run.rounds["train_seconds"].tolist() == [0.375] * 3
    assert run.clients["client"].tolist() == [0, 1, 2] * 2
    assert run.topology["host"].tolist() == ["node1", "node2"]
    assert set(run.tables["rounds"].dtype.names or ()) == set(run.rounds.columns) - lacking, "as the file has them"


@pytest.mark.parametrize("schema", [1, 2, 4, 6, 7, 8])
def test_a_run_of_an_old_version_is_resumed_with_the_columns_of_today(tmp_path: Path, schema: int) -> None:
    """Rounds 0 and 1 stay, and new rows can follow them."""
    write_old(tmp_path / "run.h5", schema, [round_record(number, accuracy=number / 4) for number in range(3)])
    rows = history.earlier(tmp_path, 1, 1, []).rounds
    rows = np.concatenate([rows, round_record(2, accuracy=0.5).row])
    assert rows["test_accuracy"].tolist() == [0, 0.25, 0.5]
    assert np.isnan(rows["validation_accuracy"]).all()
    assert rows["train_seconds"].tolist() == [0.375] * 3


def test_tables_that_nobody_asks_for_are_not_read(tmp_path: Path) -> None:
    write_old(tmp_path / "run.h5", 3, [round_record(number) for number in range(3)])
    run = open_run(tmp_path, ("ranks",))
    assert {name: len(rows) for name, rows in run.tables.items()} == {"rounds": 3, "ranks": 6}


def test_a_damaged_configuration_is_named(tmp_path: Path) -> None:
    Writer(tmp_path / "run.h5", run_info(config="a: [")).close("finished")
    with pytest.raises(UserError, match=r"run\.h5: its attribute 'config' is not YAML"):
        flora_hpc.open_run(tmp_path).config  # noqa: B018
