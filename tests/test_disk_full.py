"""A disk that takes no more ends a run with one sentence. What was told is there, and with room it goes on to the same bits."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from flora_hpc.records import hdf5file
from tests.conftest import ROOT

FEW, MANY = (  # clients of a round; the rows of many need room in run.h5 every time
    [
        *["-s", "rounds=4", "-s", "client.epochs=1", "-s", f"cohort.size={number}"],
        *["-s", "partition={name: iid, num_clients: 1000, examples_per_client: 32}"],
    ]
    for number in (4, 300)
)
Start = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 20 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a disk of 20 MB can only be mounted by root")
    yield folder
    while subprocess.run(["umount", "--recursive", folder], capture_output=True).returncode == 0:
        pass  # one that was made read-only is mounted twice


@pytest.fixture(params=[1, pytest.param(2, marks=pytest.mark.mpi)], ids=["alone", "2 ranks"])
def start(request: pytest.FixtureRequest, python: list[str]) -> Start:
    """Run Python with these arguments on one rank or two."""
    under = [*request.getfixturevalue("mpiexec"), "-n", "2"] if request.param == 2 else []

    def command(*words: object) -> subprocess.CompletedProcess[str]:
        whole = [*under, *python, *map(str, words)]
        return subprocess.run(whole, capture_output=True, text=True, timeout=240, cwd=ROOT)

    return command


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, flora: Start) -> Callable[[list[str]], Path]:
    """The run that nothing happened to, on one rank."""
    made: dict[str, Path] = {}

    def make(settings: list[str]) -> Path:
        if str(settings) not in made:
            made[str(settings)] = tmp_path_factory.mktemp("unbroken") / "run"
            done = flora(*run(made[str(settings)], settings))
            assert done.returncode == 0, done.stderr
        return made[str(settings)]

    return make


def run(out: Path, settings: list[str]) -> list[object]:
    return ["run", "configs/quickstart.yaml", *settings, "--out", out]


def bits(out: Path) -> bytes:
    return (out / "adapter" / "adapter_model.safetensors").read_bytes()


def told(result: subprocess.CompletedProcess[str], what: str) -> None:
    """The run ended with code 2 and one sentence."""
    sentences = [line for line in result.stderr.splitlines() if line.startswith("flora-hpc: ")]
    assert (result.returncode, len(sentences)) == (2, 1), result.stderr
    assert what in sentences[0]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("settings", "when", "refused", "rounds"),
    [
        (FEW, "3", "checkpoint/round-000003.safetensors: cannot be written (No space left on device); make room", (3, 4)),
        (MANY, "3", "run.h5: can no longer be written (No space left on device); make room", (3,)),
        (FEW, "adapter", "adapter: cannot be written (No space left on device); make room", (5,)),
    ],
    ids=["at a checkpoint", "in run.h5", "at the adapter"],
)
def test_a_disk_fills_up(
    settings: list[str],
    when: str,
    refused: str,
    rounds: tuple[int, ...],
    start: Start,
    disk: Path,
    unbroken: Callable[[list[str]], Path],
) -> None:
    out = disk / "run"
    told(start("tests/filled_disk.py", disk, when, *run(out, settings)), refused)
    numbers = hdf5file.read(out)[1]["rounds"]["round"].tolist()
    assert numbers == list(range(len(numbers)))
    assert len(numbers) in rounds
    if settings == MANY:
        told(start("-m", "flora_hpc", *run(out, settings), "--resume"), "cannot be written (No space left on device)")
        assert hdf5file.read(out)[1]["rounds"]["round"].tolist() == numbers
    (disk / "ballast").unlink()
    again = start("-m", "flora_hpc", *run(out, settings), "--resume")
    assert again.returncode == 0, again.stderr
    assert "goes on: after round " + ("4" if when == "adapter" else "2") in again.stdout
    assert bits(out) == bits(unbroken(settings))
    (attributes, mine), (_, theirs) = hdf5file.read(out), hdf5file.read(unbroken(settings))
    assert attributes["status"] == "finished"
    assert mine["rounds"]["test_accuracy"].tolist() == theirs["rounds"]["test_accuracy"].tolist()


@pytest.mark.parametrize(("how", "why"), [("full", "No space left on device"), ("read-only", "Read-only file system")])
def test_a_disk_that_takes_nothing_from_the_start(how: str, why: str, start: Start, disk: Path) -> None:
    if how == "full":
        (disk / "ballast").write_bytes(bytes(20 * 2**20))
    else:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    told(start("-m", "flora_hpc", *run(disk / "run", FEW)), f"--out {disk / 'run'}: cannot be written ({why}); choose a directory")


def test_a_folder_that_becomes_read_only(start: Start, disk: Path) -> None:
    out = disk / "run"
    result = start("tests/filled_disk.py", out / "checkpoint", "3:ro", *run(out, FEW))
    told(result, "checkpoint/round-000003.safetensors: cannot be written (Read-only file system); make")
    assert hdf5file.read(out)[1]["rounds"]["round"].tolist() == [0, 1, 2, 3]
    subprocess.run(["umount", out / "checkpoint"], check=True)
    again = start("-m", "flora_hpc", *run(out, FEW), "--resume")
    assert again.returncode == 0, again.stderr
    assert "goes on: after round 2" in again.stdout


@pytest.mark.parametrize("kind", ["files", "pixels"])
@pytest.mark.parametrize("room", [0, 50_000, 600_000])
def test_a_disk_fills_up_while_data_are_packed(kind: str, room: int, flora: Start, disk: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 32, 32, 3), np.uint8)
    if kind == "files":
        for i, pixels in enumerate(noise):
            (tmp_path / "data" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "data" / "ab"[i % 2] / f"{i}.png")
        data = ["imagefolder", "-s", f"data.path={tmp_path / 'data'}"]
    else:
        with h5py.File(tmp_path / "data.h5", "w") as file:
            for part in ("train", "test"):
                file[f"{part}/images"], file[f"{part}/labels"] = noise[::2], np.arange(200) % 2
            file.attrs.update(class_names='["a", "b"]', encoding="raw")
        data = ["hdf5", "-s", f"data.path={tmp_path / 'data.h5'}"]
    left = os.statvfs(disk)
    (disk / "ballast").write_bytes(bytes(left.f_bavail * left.f_frsize - room))
    told(
        flora("data", "pack", *data, "--out", disk / "packed.h5"),
        "packed.h5 cannot be written (No space left on device); make room on its disk, or choose another place",
    )
    assert [file.name for file in disk.iterdir()] == ["ballast"]
