from pathlib import Path

import h5py
import numpy as np
import pytest

from flora_hpc import open_run
from flora_hpc.errors import UserError
from flora_hpc.records import split
from flora_hpc.records.hdf5file import Writer
from flora_hpc.records.history import earlier
from flora_hpc.records.split import Split
from tests.contracts.known_helpers import round_record, run_info


def test_a_split_is_read_as_it_was_written_also_while_the_run_goes_on(tmp_path: Path) -> None:
    wide = Split(np.array([0, 7, 10**12]), np.array([[1, 70_000], [0, 3], [5, 0]]), ("a café", "日本"))
    writer = Writer(tmp_path / "run.h5", run_info(split=wide))
    writer.add(round_record(0))
    found = split.read(tmp_path / "run.h5")
    assert found is not None
    assert found.clients.tolist() == [0, 7, 10**12]
    assert found.counts.tolist() == [[1, 70_000], [0, 3], [5, 0]]
    assert found.classes == ("a café", "日本")
    writer.close("finished")
    frame = open_run(tmp_path).split
    assert frame is not None
    assert frame.loc[7, "日本"] == 3
    assert (frame.index.name, frame.columns.name) == ("client", "class")


def test_a_thousand_clients_take_little_room(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).poisson(2, (1000, 100))
    for name, wanted in (("with", Split(np.arange(1000), counts, tuple(f"class {i}" for i in range(100)))), ("without", None)):
        Writer(tmp_path / f"{name}.h5", run_info(split=wanted)).close("finished")
    grown = (tmp_path / "with.h5").stat().st_size - (tmp_path / "without.h5").stat().st_size
    assert grown < 100_000, "a byte a count, and packed"


def test_a_run_that_goes_on_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    writer = Writer(path, run_info())
    writer.add(round_record(0))
    writer.close("stopped")
    Writer(path, run_info(earlier=earlier(path, 0, 0, []))).close("finished")
    found = split.read(path)
    assert found is not None
    assert found.counts[:2].tolist() == [[10, 0], [4, 6]]


def test_without_a_split_there_is_none(tmp_path: Path) -> None:
    Writer(tmp_path / "run.h5", run_info(split=None)).close("finished")
    assert open_run(tmp_path).split is None


def test_a_damaged_split_is_refused(tmp_path: Path) -> None:
    Writer(tmp_path / "run.h5", run_info()).close("finished")
    with h5py.File(tmp_path / "run.h5", "r+") as file:
        del file["split/counts"]
    with pytest.raises(UserError, match="its /split cannot be read"):
        split.read(tmp_path / "run.h5")


def test_a_split_without_the_right_to_read_it_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(path: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", deny)
    with pytest.raises(UserError, match=r"its /split cannot be read \(Permission denied\); make it readable"):
        split.read(tmp_path / "run.h5")


def test_names_that_are_no_text_are_kept_apart(tmp_path: Path) -> None:
    """Folders whose names are not UTF-8, and what JSON calls a lone surrogate."""
    odd = Split(np.arange(2), np.ones((2, 3), np.int64), ("caf\udce9", "caf\udce8", "\ud800"))
    Writer(tmp_path / "run.h5", run_info(dataset="d\ud800", split=odd)).close("finished")
    found = split.read(tmp_path / "run.h5")
    assert found is not None
    assert found.classes == ("caf\\udce9", "caf\\udce8", "\\ud800")
    assert open_run(tmp_path).attributes["dataset"] == "d\\ud800"
