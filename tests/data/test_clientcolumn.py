"""A column of the file of clients, or of the data, gives each client a text."""

from pathlib import Path

import numpy as np
import pytest

from flora_hpc.data import clientcolumn, holdings
from flora_hpc.data.holdings import Holdings, Partition
from flora_hpc.data.partitioners import file
from flora_hpc.errors import UserError
from tests.data.made_images import made

IMAGES = made([0, 0, 0, 1, 1, 1], device=np.array(["a", "a", "b", " b", "a", "c"], object), size=np.array([1, 1, 2, 2, 2, 3]))


def of_file(folder: Path, *lines: str) -> Holdings:
    table = folder / "clients.csv"
    table.write_text("\n".join(["row,client,rank,note", *lines]))
    return holdings.make(file.Options(name="file", path=table), IMAGES, np.arange(6), 0)


def test_a_column_of_the_file_of_clients(tmp_path: Path) -> None:
    """Clients 7 and 07 are one. Lines of nobody say nothing."""
    clients = of_file(tmp_path, "0,07, 2,x", "1,9,8,y", "2,7,2,z", "3,-1,5,x", "4,9,8,y")
    assert clientcolumn.read(clients, IMAGES, "rank", "key") == ["2", "8"]
    with pytest.raises(UserError, match="key: client 0 has no value in column 'note', or images with several values"):
        clientcolumn.read(clients, IMAGES, "note", "key")


def test_a_column_of_the_data() -> None:
    clients = Partition(np.array([0, 1, 2, 3]), np.array([0, 2, 4]))
    assert clientcolumn.read(clients, IMAGES, "device", "key") == ["a", "b"]
    assert clientcolumn.read(clients, IMAGES, "size", "key") == ["1", "2"]
    with pytest.raises(UserError, match="client 1 has no value in column 'device', or images with several values"):
        clientcolumn.read(Partition(np.arange(6), np.array([0, 2, 6])), IMAGES, "device", "key")


def test_a_column_that_is_not_there_is_refused(tmp_path: Path) -> None:
    message = "key: neither data nor clients have a column 'devise'; did you mean 'device'?"
    with pytest.raises(UserError) as error:
        clientcolumn.read(of_file(tmp_path, "0,0,2,x"), IMAGES, "devise", "key")
    assert str(error.value).startswith(message)
    assert "(they have device, note, rank, size)" in str(error.value)
