import csv
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flora_hpc.data import rows
from flora_hpc.data.holdings import Partition, Population
from flora_hpc.data.images import Dataset, Images
from flora_hpc.data.partitioners import iid
from flora_hpc.data.rows import NOBODY, Table, check, table, write
from flora_hpc.errors import UserError
from tests.data.made_images import made

PLACES = ["a.png", "b, c.png", os.fsdecode(b"\xff.png"), "é\n.png", "e.png", "f.png"]


def dataset(path: bool = True) -> Dataset:
    images: Images = made([0, 1, 0, 1, 1, 0], **({"path": np.array(PLACES, object)} if path else {}))
    return Dataset("small", ("cat", "dog, big"), ("cat", "dog"), ("cat", "dog"), images, np.array([0, 1, 2, 4]), np.array([3, 5]))


HOLDERS = Partition(np.array([2, 0, 4]), np.array([0, 2, 3]))  # client 0 holds 2 and 0, client 1 holds 4, nobody 1


def test_clients_in_their_order_then_nobodys_then_test_images() -> None:
    result = table(dataset(), HOLDERS)
    assert result.client.tolist() == [0, 0, 1, NOBODY, NOBODY, NOBODY]
    assert result.row.tolist() == [2, 0, 4, 1, 3, 5]
    assert result.split.tolist() == ["train"] * 4 + ["test"] * 2
    assert result.label.tolist() == [0, 0, 1, 1, 1, 0]
    assert result.place is not None
    assert result.place.tolist() == [PLACES[row] for row in result.row]


def test_validation_images_come_before_test_images() -> None:
    result = table(replace(dataset(), train=np.array([0, 2, 4]), validation=np.array([1])), HOLDERS)
    assert result.client.tolist() == [0, 0, 1, NOBODY, NOBODY, NOBODY]
    assert result.row.tolist() == [2, 0, 4, 1, 3, 5]
    assert result.split.tolist() == ["train"] * 3 + ["validation"] + ["test"] * 2


def test_the_first_clients_alone() -> None:
    """Images of clients that are not in the table are not listed as unassigned."""
    result = table(dataset(), HOLDERS, 1)
    assert (result.client.tolist(), result.row.tolist()) == ([0, 0, NOBODY, NOBODY], [2, 0, 3, 5])
    assert table(dataset(), HOLDERS, 99).row.tolist() == table(dataset(), HOLDERS).row.tolist()


def test_npz_opens_without_pickles(tmp_path: Path) -> None:
    write(tmp_path / "a.NPZ", table(dataset(), HOLDERS))
    with np.load(tmp_path / "a.NPZ") as file:
        assert sorted(file) == ["classes", "client", "label", "path", "row", "split"]
        assert (file["row"].dtype, file["path"].tolist()) == (np.int64, [PLACES[row] for row in (2, 0, 4, 1, 3, 5)])
        assert file["classes"].tolist() == ["cat", "dog, big"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.NPZ"]


@pytest.mark.parametrize("path", [True, False])
def test_csv(tmp_path: Path, path: bool) -> None:
    write(tmp_path / "a.csv", table(dataset(path), HOLDERS))
    with (tmp_path / "a.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        lines = list(csv.DictReader(file))
    assert lines[0] == {
        "client": "0",
        "row": "2",
        "split": "train",
        "label": "0",
        "class": "cat",
        "path": PLACES[2] if path else "",
    }
    assert (lines[3]["client"], lines[3]["class"], len(lines)) == ("-1", "dog, big", 6)


def population(num_clients: int) -> Population:
    options = iid.Options(name="iid", num_clients=num_clients)
    return Population(num_clients, 2, 0, iid.build(options, made([0, 1, 0, 1])), np.array([0, 1, 2, 4]))


def test_clients_that_draw_their_own_images() -> None:
    result = table(dataset(), population(3))
    assert result.client[:6].tolist() == [0, 0, 1, 1, 2, 2]
    assert result.row[:2].tolist() == population(3).examples(0).tolist()


def test_too_many_clients_are_refused_with_a_number_that_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"1,000,000,000,000 clients draw 2,000,000,000,000 images.*with --clients 5000000$"):
        table(dataset(), population(10**12))  # eight bytes of each would be too much for any machine
    monkeypatch.setattr(rows, "MOST_ROWS", 4)
    with pytest.raises(UserError, match="--clients 2"):
        table(dataset(), population(3))
    assert isinstance(table(dataset(), population(3), 2), Table)


def test_a_file_that_is_there_survives(tmp_path: Path) -> None:
    """The existing file may be the table of the dataset itself."""
    (tmp_path / "a.csv").write_text("image,caption\n")
    with pytest.raises(UserError, match=r"^--rows: .*/a\.csv exists already; give another name, or --replace$"):
        check(tmp_path / "a.csv")
    check(tmp_path / "a.csv", replace=True)
    assert (tmp_path / "a.csv").read_text() == "image,caption\n"


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.txt is neither a \.npz nor a \.csv file"):
        check(tmp_path / "a.txt")
    with pytest.raises(UserError, match=r"there is no folder .*/no; create it first"):
        check(tmp_path / "no" / "a.csv")
    (tmp_path / "a.csv").mkdir()
    check(tmp_path / "a.csv", replace=True)
    with pytest.raises(UserError, match=r"a\.csv cannot be written \(Is a directory\)"):
        write(tmp_path / "a.csv", table(dataset(), HOLDERS))
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.csv"]
