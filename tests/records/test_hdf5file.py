import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from flora_hpc.errors import UserError
from flora_hpc.records import hdf5file
from flora_hpc.records.hdf5file import Writer
from flora_hpc.records.known import RoundRecord
from flora_hpc.records.schema import CLIENTS, SCHEMA, Rows
from tests.conftest import ROOT
from tests.contracts.known_helpers import round_record, run_info

# The contract: what readers of run.h5 rely on (more columns may be there).
COLUMNS = {
    "rounds": "round num_clients num_examples train_loss test_accuracy uplink_bytes downlink_bytes collective_bytes "
    "train_seconds wait_seconds comm_seconds server_seconds eval_seconds round_seconds",
    "ranks": "round rank num_clients train_seconds wait_seconds comm_seconds collective_bytes peak_memory_bytes",
    "clients": "round client rank num_examples num_steps train_loss update_norm train_seconds uplink_bytes downlink_bytes",
    "topology": "rank host local_rank device num_threads",
}
FILLER = """
import os, sys
from pathlib import Path
from flora_hpc.records import hdf5file
from flora_hpc.records.hdf5file import Writer
from tests.contracts.known_helpers import round_record, run_info

disk, when = Path(sys.argv[1]), sys.argv[2]
for pages in map(int, sys.argv[3:]):
    writer, number = Writer(disk / "run.h5", run_info()), 0
    while when == "close" and number < 20:
        writer.add(round_record(number, num_clients=20))
        number += 1
    left = os.statvfs(disk)
    (disk / "ballast").write_bytes(bytes(left.f_bavail * left.f_frsize - 4096 * pages))
    try:
        while when == "add":
            writer.add(round_record(number, num_clients=20))
            number += 1
    except (OSError, RuntimeError):
        pass
    try:
        writer.close("failed")
    except OSError:
        pass
    attributes, tables = hdf5file.read(disk / "run.h5")
    print(tables["rounds"]["round"].tolist() == list(range(number)))
    for file in disk.iterdir():
        file.unlink()
"""
READER = "import h5py, sys; f = h5py.File(sys.argv[1], 'r', libver='latest', swmr=True); print('open', flush=True); input()"
ROUNDS_OF = """
import sys
from pathlib import Path
from flora_hpc.records import hdf5file

print(hdf5file.read(Path(sys.argv[1]))[1]["rounds"]["round"])
"""
WRITER = """
import sys
from pathlib import Path
from flora_hpc.records.hdf5file import Writer
from tests.contracts.known_helpers import round_record, run_info

writer = Writer(Path(sys.argv[1]), run_info())
for number in range(10**9):
    writer.add(round_record(number, accuracy=0.5, num_clients=number % 50 + 1))
    print(number, flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.h5"


@pytest.fixture
def finished(path: Path) -> Path:
    """A run of three rounds."""
    writer = Writer(path, run_info())
    for number in range(3):
        writer.add(round_record(number, accuracy=number / 4))
    writer.close("finished")
    return path


def assert_whole(tables: dict[str, Rows], records: list[RoundRecord]) -> None:
    """The tables hold these rounds, every value of them, and nothing else."""
    for name, part in (("rounds", "row"), ("ranks", "ranks"), ("clients", "clients")):
        expected = np.concatenate([getattr(record, part) for record in records])
        for column in expected.dtype.names:
            np.testing.assert_array_equal(tables[name][column], expected[column], f"/{name} {column}")


# --- how large it is


def test_it_grows_by_at_most_100_bytes_for_each_client_of_large_rounds(path: Path) -> None:
    """With 1,000 clients a round: growth from round to round, and the whole file of a run, its facts and topology included."""
    writer = Writer(path, run_info())
    sizes = []
    for number in range(1, 21):
        writer.add(round_record(number, accuracy=0.5, num_clients=1000))
        sizes.append(path.stat().st_size)
    writer.close("finished")
    assert (sizes[-1] - sizes[0]) / (19 * 1000) <= CLIENTS.itemsize + 1
    assert path.stat().st_size / (20 * 1000) <= 100


# --- what is in it


@pytest.mark.parametrize("table", COLUMNS)
def test_tables_have_the_columns_that_readers_rely_on(finished: Path, table: str) -> None:
    with h5py.File(finished) as file:
        assert set(COLUMNS[table].split()) <= set(file[table].dtype.names)


def test_attributes_have_what_readers_rely_on(finished: Path) -> None:
    with h5py.File(finished) as file:
        facts = dict(file.attrs)
    assert facts["schema"] == SCHEMA
    assert (facts["seed"], facts["launcher"], facts["backend"], facts["world_size"]) == (7, "mpich", "mpi", 2)
    assert json.loads(facts["versions"])["python"] == "3.11.1"
    assert yaml.safe_load(facts["config"])["data"] == {"name": "digits"}


@pytest.mark.parametrize("status", ["finished", "interrupted", "failed"])
def test_the_end_is_noted_as_text(path: Path, status: str) -> None:
    Writer(path, run_info()).close(status)
    with h5py.File(path) as file:
        assert file.attrs["status"] == status.encode(), "of a fixed length, which h5py gives as bytes"
    assert hdf5file.read(path)[0]["status"] == status


def test_a_finished_file_needs_no_special_way_to_open_it(finished: Path) -> None:
    with h5py.File(finished) as file:
        assert file["rounds"]["round"].tolist() == [0, 1, 2]
        assert file["clients"]["client"].tolist() == [0, 1, 2, 0, 1, 2]
        assert file["ranks"]["rank"].tolist() == [0, 1] * 3
        assert file["topology"]["host"].tolist() == [b"node1", b"node2"]


def test_reading_gives_back_what_was_written(finished: Path) -> None:
    _, tables = hdf5file.read(finished)
    assert_whole(tables, [round_record(number, accuracy=number / 4) for number in range(3)])
    np.testing.assert_array_equal(tables["topology"], run_info().topology)


def test_a_run_is_found_by_its_directory_or_its_file(finished: Path) -> None:
    assert hdf5file.locate(finished) == hdf5file.locate(finished.parent) == finished


def test_an_earlier_run_is_not_written_over(finished: Path) -> None:
    with pytest.raises(FileExistsError):
        Writer(finished, run_info())


# --- for other programs

NEWEST = {0x01: 2, 0x03: 3, 0x08: 4, 0x0C: 3}  # of HDF5 1.10: dataspace, datatype, data layout, attribute


def versions(data: bytes, address: int) -> list[tuple[int, int]]:
    """Type and version of each message of an object header (HDF5 File Format Specification, version 3, IV.A.1.b)."""
    assert data[address : address + 5] == b"OHDR\2"
    flags = data[address + 5]
    start = address + 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
    width, fixed = 1 << (flags & 3), 6 if flags & 4 else 4
    blocks = [(start + width, int.from_bytes(data[start : start + width], "little"))]
    messages = []
    for at, length in blocks:
        end = at + length
        while at + fixed <= end:
            kind, size, body = data[at], int.from_bytes(data[at + 1 : at + 3], "little"), at + fixed
            if kind == 0x10:  # the header goes on elsewhere, between a signature and a checksum
                where, much = (int.from_bytes(data[body + i : body + i + 8], "little") for i in (0, 8))
                blocks.append((where + 4, much - 8))
            messages.append((kind, data[body] >> 4 if kind == 0x03 else data[body]))  # a datatype shares the byte with its class
            at = body + size
    return messages


def test_the_file_has_nothing_that_hdf5_1_10_does_not_know(finished: Path) -> None:
    data = finished.read_bytes()
    assert data[8] == 3, "the superblock's version"
    with h5py.File(finished) as file:
        addresses = {
            name: h5py.h5o.get_info(file[name].id).addr for name in (*COLUMNS, "split/client", "split/counts", "split/class")
        }
    for name, address in addresses.items():
        told = versions(data, address)
        assert {0x01, 0x03, 0x08} <= {kind for kind, _ in told}, name
        assert all(version <= NEWEST[kind] for kind, version in told if kind in NEWEST), (name, told)


@pytest.mark.skipif(not shutil.which("h5dump"), reason="needs HDF5's tools")
def test_hdf5s_own_tools_read_it(finished: Path) -> None:
    """In CI those of HDF5 1.10, Debian's hdf5-tools."""
    listed = subprocess.run(["h5ls", "-r", finished], capture_output=True, text=True, check=True, timeout=60).stdout
    assert re.search(r"/rounds +Dataset \{3/Inf\}", listed)
    assert "ERROR" not in listed
    dumped = subprocess.run(["h5dump", "-d", "/rounds", finished], capture_output=True, text=True, check=True, timeout=60).stdout
    assert '"round_seconds"' in dumped
    assert 'ATTRIBUTE "unit"' in dumped
    assert "0.25" in dumped.split("DATA {")[1], "the accuracy after round 1"


@pytest.mark.skipif(not shutil.which("h5clear"), reason="needs HDF5's tools")
def test_hdf5s_own_tools_read_a_copy_of_a_run_that_goes_on(path: Path) -> None:
    """As run-file.md says, once the mark of its writer is lifted."""
    writer = Writer(path, run_info())
    for number in range(3):
        writer.add(round_record(number))
    copied = shutil.copy(path, path.with_name("copy.h5"))
    writer.close("finished")
    subprocess.run(["h5clear", "-s", "--increment=0", copied], check=True, timeout=60)
    dumped = subprocess.run(["h5dump", "-d", "/rounds", copied], capture_output=True, text=True, check=True, timeout=60).stdout
    assert "(2): {" in dumped


# --- while it is written


def test_readable_before_the_first_round(path: Path) -> None:
    writer = Writer(path, run_info())
    attributes, tables = hdf5file.read(path)
    writer.close("failed")
    assert attributes["status"] == "running"
    assert {name: len(rows) for name, rows in tables.items()} == {"rounds": 0, "ranks": 0, "clients": 0, "topology": 2}


def test_readable_after_every_round(path: Path) -> None:
    writer = Writer(path, run_info())
    seen = []
    for number in range(3):
        writer.add(round_record(number))
        _, tables = hdf5file.read(path)
        seen.append([len(tables[name]) for name in ("rounds", "ranks", "clients")])
    writer.close("finished")
    assert seen == [[1, 2, 0], [2, 4, 3], [3, 6, 6]]


def test_another_process_sees_the_rounds_so_far(path: Path) -> None:
    writer = Writer(path, run_info())
    writer.add(round_record(0))
    writer.add(round_record(1))
    shown = subprocess.run([sys.executable, "-c", ROUNDS_OF, str(path)], capture_output=True, text=True, timeout=60, cwd=ROOT)
    writer.close("finished")
    assert shown.stdout == "[0 1]\n", shown.stderr


def test_rows_of_a_round_that_was_not_finished_are_left_out(finished: Path) -> None:
    """A round's clients and ranks are written before the round itself."""
    unfinished = round_record(3)
    with h5py.File(finished, "r+") as file:
        for name, rows in (("clients", unfinished.clients), ("ranks", unfinished.ranks)):
            file[name].resize(len(file[name]) + len(rows), axis=0)
            file[name][-len(rows) :] = rows
    _, tables = hdf5file.read(finished)
    assert {name: int(tables[name]["round"].max()) for name in ("rounds", "ranks", "clients")} == dict.fromkeys(
        ("rounds", "ranks", "clients"), 2
    )


def test_a_run_can_end_while_somebody_reads_it(path: Path) -> None:
    writer = Writer(path, run_info())
    writer.add(round_record(0))
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert reader.stdout.readline() == "open\n"
        writer.close("finished")
        attributes, tables = hdf5file.read(path)
    finally:
        reader.communicate("\n", timeout=60)
    assert attributes["status"] == "finished"
    assert tables["rounds"]["round"].tolist() == [0]


@pytest.mark.parametrize("attempt", range(5))
def test_a_killed_writer_leaves_every_finished_round_whole(path: Path, attempt: int) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    reported = -1
    while reported < 3 + attempt:
        reported = int(writer.stdout.readline())
    time.sleep(0.003 * attempt)  # another moment each time
    os.kill(writer.pid, signal.SIGKILL)
    reported = max([reported, *map(int, writer.communicate()[0].split("\n")[:-1])])

    attributes, tables = hdf5file.read(path)
    assert attributes["status"] == "running"
    last = int(tables["rounds"]["round"].max())
    assert last >= reported
    assert_whole(tables, [round_record(number, accuracy=0.5, num_clients=number % 50 + 1) for number in range(last + 1)])


@pytest.mark.parametrize("when", ["add", "close"])
def test_a_full_disk_leaves_every_finished_round_and_does_not_crash_the_process(when: str, tmp_path: Path) -> None:
    """Full to the last so many pages; HDF5 of files that it could not write used to end the process with a segmentation fault."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk can only be mounted by root")
    try:
        pages = [*range(0, 90, 7)]
        command = [sys.executable, "-c", FILLER, tmp_path, when, *pages]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=100, cwd=ROOT)
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["True"] * len(pages)


# --- what is not a run


def refusal(path: Path) -> str:
    """The message that refuses the file; it names it."""
    with pytest.raises(UserError) as caught:
        hdf5file.read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_nothing_there(path: Path) -> None:
    assert "holds no run" in refusal(path)
    assert "give a run directory or its run.h5" in refusal(path.parent)


def test_a_text_file(path: Path) -> None:
    path.write_text("not a run")
    assert "is not an HDF5 file" in refusal(path)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_an_hdf5_file_of_something_else(path: Path, libver: str) -> None:
    with h5py.File(path, "w", libver=libver) as file:
        file["train/images"] = np.zeros((2, 4, 4), np.uint8)
    assert "not one that flora-hpc wrote" in refusal(path)


def test_an_hdf5_file_of_something_else_with_names_like_a_runs(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for table in COLUMNS:
            file.create_group(table)
    assert "not one that flora-hpc wrote" in refusal(path)


def test_a_run_of_a_newer_version(finished: Path) -> None:
    with h5py.File(finished, "r+") as file:
        file.attrs["schema"] = SCHEMA + 1
    assert f"newer flora-hpc (schema {SCHEMA + 1}, here {SCHEMA}); update flora-hpc" in refusal(finished)


def test_a_run_of_a_newer_version_with_other_tables(finished: Path) -> None:
    with h5py.File(finished, "r+") as file:
        file.attrs["schema"] = SCHEMA + 1
        file.move("topology", "places")
    assert "newer flora-hpc" in refusal(finished)
