from pathlib import Path

import h5py
import pytest

from flora_hpc.records import clientrows, storage
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
        assert run.clients_of(number).tobytes() == clientrows.of_rounds(tmp_path, number, number).tobytes() == expected.tobytes()
    assert [len(run.clients_of(number)) for number in range(5)] == [0, 5, 5, 5, 0]


def test_some_columns_of_some_rounds(tmp_path: Path) -> None:
    run = open_run(written(tmp_path / "run.h5", 5))
    rows = run.clients_of_rounds(1, 2, ("client", "num_examples", "no such column"))
    assert rows.dtype.names == ("client", "num_examples")
    assert rows["client"].tolist() == run.tables["clients"]["client"][:10].tolist()


def test_pieces_are_all_rows_up_to_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rounds of five rows, four at a time."""
    run = open_run(written(tmp_path / "run.h5", storage.MANY_ROWS))
    monkeypatch.setattr(clientrows, "PIECE_ROWS", 4)
    pieces = list(clientrows.pieces(tmp_path, 2))
    assert list(map(len, pieces)) == [4, 4, 2]
    assert b"".join(piece.tobytes() for piece in pieces) == run.tables["clients"][:10].tobytes()


def test_rows_of_clients_are_read_when_somebody_asks_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "run.h5", 5)
    calls = []
    monkeypatch.setattr(clientrows, "of_rounds", lambda *arguments: calls.append(arguments[1:]) or "rows")
    run = open_run(tmp_path)
    assert (list(run.tables), calls) == (["rounds", "ranks", "topology", "clients"], [])
    assert (run.tables["clients"], run.tables["clients"], calls) == ("rows", "rows", [(0, 3)])
