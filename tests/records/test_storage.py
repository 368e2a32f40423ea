from pathlib import Path

import h5py
import pytest

from flora_hpc.records import hdf5file, storage
from flora_hpc.records.hdf5file import Writer
from flora_hpc.records.opened import open_run
from tests.contracts.known_helpers import round_record, run_info


def written(path: Path, rows_per_round: int) -> Path:
    writer = Writer(path, run_info(rows_per_round=rows_per_round))
    for number in range(4):
        writer.add(round_record(number, num_clients=5))
    writer.close("finished")
    return path


@pytest.mark.parametrize(("rows_per_round", "filters"), [(5, None), (storage.MANY_ROWS, "gzip")])
def test_rows_of_many_clients_are_compressed_with_what_every_hdf5_has(
    tmp_path: Path, rows_per_round: int, filters: str | None
) -> None:
    with h5py.File(written(tmp_path / "run.h5", rows_per_round)) as file:
        assert file["clients"].compression == filters
        assert file["ranks"].compression is None


@pytest.mark.parametrize("rows_per_round", [5, storage.MANY_ROWS])
def test_the_rows_of_one_round_are_read_alone(tmp_path: Path, rows_per_round: int) -> None:
    run = open_run(written(tmp_path / "run.h5", rows_per_round))
    for number in range(5):
        expected = run.tables["clients"][run.tables["clients"]["round"] == number]
        assert run.clients_of(number).tobytes() == hdf5file.client_rows(tmp_path, number).tobytes() == expected.tobytes()
    assert [len(run.clients_of(number)) for number in range(5)] == [0, 5, 5, 5, 0]
