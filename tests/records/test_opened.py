"""Runs as pandas frames."""

from pathlib import Path

import numpy as np

import flora_hpc
from flora_hpc.records.hdf5file import Writer
from flora_hpc.records.schema import TABLES
from tests.contracts.known_helpers import round_record, run_info


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
