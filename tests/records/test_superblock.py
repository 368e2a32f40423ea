import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import pytest

from flora_hpc.errors import UserError
from flora_hpc.records import hdf5file
from flora_hpc.records.hdf5file import Writer
from flora_hpc.records.superblock import is_open, lookup3
from tests.conftest import ROOT
from tests.contracts.known_helpers import round_record, run_info

KILLED_AT_THE_END = (
    "import h5py, os, sys; f = h5py.File(sys.argv[1], 'r+', libver='latest'); f.attrs['status'] = 'x'; os.kill(os.getpid(), 9)"
)


def test_the_checksum_is_the_one_of_its_author() -> None:
    """The values that its author gives (driver5 of lookup3.c)."""
    assert lookup3(b"Four score and seven years ago") == 0x17770551


def written(path: Path, num_rounds: int = 3) -> Path:
    writer = Writer(path, run_info())
    for number in range(num_rounds):
        writer.add(round_record(number, accuracy=0.5))
    writer.close("finished")
    return path


def test_a_run_killed_while_it_noted_its_end_opens(tmp_path: Path) -> None:
    """HDF5 opens such a file neither plainly nor in SWMR mode, before h5clear has been at it."""
    path = written(tmp_path / "run.h5")
    killed = subprocess.run([sys.executable, "-c", KILLED_AT_THE_END, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    for swmr in (False, True):
        with pytest.raises(OSError, match="file"):
            h5py.File(path, "r", libver="latest", swmr=swmr)
    before = path.read_bytes()
    assert hdf5file.read(path)[1]["rounds"]["round"].tolist() == [0, 1, 2]
    assert path.read_bytes() == before, "the mark is lifted for the reader alone"


@pytest.mark.parametrize("byte", [9, 11, 30, 40, 47, 60])
def test_a_flipped_byte_at_the_start_is_refused_and_does_not_hang(tmp_path: Path, byte: int) -> None:
    """HDF5's SWMR mode would try the block again and again, for hours."""
    path = written(tmp_path / "run.h5")
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"run\.h5: is damaged \(.*\); copy it again"):
        hdf5file.read(path)


@pytest.mark.parametrize("cut", [1, 1_000, 10_000, 0.5, 0.9])
@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("num_clients", [3, 200])
def test_a_run_that_was_cut_off_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_clients: int, ended: bool, cut: float
) -> None:
    """`cut` is how many bytes are gone, or which share; of a run that goes on or was killed HDF5 itself does not notice."""
    monkeypatch.setattr("flora_hpc.records.hdf5file.PAUSES", ())
    path = tmp_path / "run.h5"
    writer = Writer(path, run_info())
    for number in range(20):
        writer.add(round_record(number, accuracy=0.5, num_clients=num_clients))
    if ended:
        writer.close("finished")
    copied = shutil.copy(path, tmp_path / "copied.h5")
    size = path.stat().st_size
    os.truncate(copied, size - int(cut if cut >= 1 else cut * size))
    with pytest.raises(UserError, match=r"copied\.h5: "):
        hdf5file.read(copied)


def test_a_file_is_marked_as_open_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    assert not is_open(path), "it is not there"
    writer = Writer(path, run_info())
    assert is_open(path)
    writer.close("finished")
    assert not is_open(path)
    for content in (b"", b"not a run", b"\x89HDF\r\n\x1a\n" + bytes(range(40))):
        path.write_bytes(content)
        assert not is_open(path)


def test_a_damaged_mark_is_none(tmp_path: Path) -> None:
    path = written(tmp_path / "run.h5")
    data = bytearray(path.read_bytes())
    data[11] = 5  # as if open, but for the checksum
    path.write_bytes(data)
    assert not is_open(path)


READS = """
import sys
from pathlib import Path
import numpy as np
from flora_hpc.records import hdf5file

status, reads = "running", 0
while status == "running":
    attributes, tables = hdf5file.read(Path(sys.argv[1]))
    numbers, status, reads = tables["rounds"]["round"], attributes["status"], reads + 1
    assert np.array_equal(numbers, np.arange(len(numbers)))
    assert len(tables["ranks"]) == 2 * len(numbers), (len(tables["ranks"]), len(numbers))
    assert len(tables["clients"]) == sum(int(n) % 50 + 1 for n in numbers if n)
    assert (tables["clients"]["num_examples"] == 10).all()
    if reads == 1:
        print("begun", flush=True)
print(reads, len(numbers), flush=True)
"""


@pytest.mark.parametrize("locking", ["TRUE", "FALSE", "BEST_EFFORT"])
def test_reading_again_and_again_sees_whole_rounds_and_leaves_the_writer_alone(tmp_path: Path, locking: str) -> None:
    """The writer closes the file, and notes how the run ended, while it is read; whatever HDF5 is told of locks."""
    path = tmp_path / "run.h5"
    writer = Writer(path, run_info())
    environment = os.environ | {"HDF5_USE_FILE_LOCKING": locking, "PYTHONPATH": str(ROOT)}
    reader = subprocess.Popen([sys.executable, "-c", READS, str(path)], stdout=subprocess.PIPE, text=True, env=environment)
    for number in range(400):
        if number == 20:
            assert reader.stdout.readline() == "begun\n", "or else all would be over before the first read"
        writer.add(round_record(number, accuracy=0.5, num_clients=number % 50 + 1))
    writer.close("finished")
    reads, rounds = map(int, reader.communicate(timeout=120)[0].split())
    assert reads > 1
    assert rounds == 400
    assert reader.returncode == 0
