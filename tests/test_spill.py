"""HDF5 continues and closes its file, at whatever write the disk becomes full."""

import errno
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from flora_hpc.spill import Spill

NOISE = np.random.default_rng(0).integers(0, 256, (300, 1000), np.uint8)


def write(file: h5py.File) -> None:
    table = file.create_dataset("table", (0, 1000), np.uint8, maxshape=(None, 1000), chunks=(40, 1000), compression="gzip")
    lists = file.create_dataset("lists", (0,), h5py.vlen_dtype(np.uint8), maxshape=(None,), chunks=(16,))
    for start in range(0, 300, 50):
        table.resize(start + 50, 0)
        table[start:] = NOISE[start : start + 50]
        lists.resize(len(lists) + 1, 0)
        lists[-1:] = [NOISE[start]]
    file.attrs["name"] = "noise"


def assert_whole(file: h5py.File) -> None:
    np.testing.assert_array_equal(file["table"][:], NOISE)
    np.testing.assert_array_equal(np.stack(list(file["lists"][:])), NOISE[::50])
    assert file.attrs["name"] == "noise"


def test_a_disk_that_takes_everything(tmp_path: Path) -> None:
    with Spill(tmp_path / "file.h5") as disk:
        with h5py.File(disk, "w") as file:
            write(file)
            assert_whole(file)
        disk.sync()
    with h5py.File(tmp_path / "file.h5") as file:
        assert_whole(file)


@pytest.mark.parametrize("takes", [0, 1, 700, 5_000, 60_000, 123_456, 300_000])
def test_a_disk_that_takes_so_many_bytes(takes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite, path = os.pwrite, tmp_path / "file.h5"

    def until_full(file: int, data: Any, offset: int) -> int:
        if offset >= takes:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(file, data[: takes - offset], offset)

    monkeypatch.setattr(os, "pwrite", until_full)
    with Spill(path) as disk:
        with h5py.File(disk, "w") as file:
            write(file)
            assert_whole(file)  # what was written is read back, from the disk and from memory
            file.flush()
            with pytest.raises(OSError, match="No space left"):
                disk.check()
            there = path.read_bytes()
        with pytest.raises(OSError, match="No space left"):
            disk.sync()
    assert path.read_bytes() == there, "as a kill would leave it"


def test_what_is_written_twice_is_read_as_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Spill(tmp_path / "file") as disk:
        disk.write(b"0123456789")
        monkeypatch.setattr(os, "pwrite", lambda *_: os.write(-1, b""))
        for offset, data in ((4, b"abcd"), (6, b"xy"), (12, b"end")):
            disk.seek(offset)
            disk.write(data)
        disk.seek(2)
        assert disk.read(15) == b"23abxy89\0\0end\0\0"
        assert disk.error is not None
        assert disk.error.errno == errno.EBADF
        disk.truncate(0)
    assert (tmp_path / "file").read_bytes() == b"0123456789"


def test_a_disk_that_says_at_the_end_that_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS does this."""

    def full(_: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "fsync", full)
    with Spill(tmp_path / "file") as disk:
        disk.write(b"data")
        disk.check()
        with pytest.raises(OSError, match="quota"):
            disk.sync()
