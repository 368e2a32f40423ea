"""A stopped or killed run resumes on any number of ranks, and ends with the same bits as an uninterrupted run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flora_hpc.records import hdf5file
from tests import forks
from tests.conftest import ROOT, refusal
from tests.same_runs import adapter, assert_same

pytestmark = pytest.mark.usefixtures("python")

Flora = Callable[..., subprocess.CompletedProcess[str]]
SMALL = ["-s", "rounds=4", "-s", "client.epochs=1", "-s", "partition.num_clients=5", "-s", "client.group_size=2"]
KEEP = ["-s", "client.optimizer_state=keep"]
OVERLAP = ["-s", "evaluate.overlap=true"]
QUICK = ["-s", "partition={name: iid, num_clients: 1000, examples_per_client: 32}", "-s", "cohort.size=4"]
KILLS, STARTS = (int(os.environ.get(f"FLORA_HPC_{name}", default)) for name, default in (("KILLS", "2"), ("STARTS", "1")))


def command(out: Path, *more: str) -> list[str]:
    return ["run", str(ROOT / "configs" / "quickstart.yaml"), *SMALL, *more, "--out", str(out)]


def start(under: list[str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*under, *words], capture_output=True, text=True, timeout=max(200, 20 * KILLS), cwd=ROOT)


def signalled(name: str, rank: int, at: int, out: Path, *more: str, under: list[str]) -> subprocess.CompletedProcess[str]:
    program = [*forks.PYTHON, str(ROOT / "tests" / "signalled_rank.py"), name, str(rank), str(at)]
    return start(under, *program, *command(out, *more))


def resumed(out: Path, *more: str, under: list[str] | None = None) -> str:
    done = start(under or [], *forks.PYTHON, "-m", "flora_hpc", *command(out, *more), "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_equal(out: Path, unbroken: Path) -> None:
    """The same adapter and measured columns, and only the checkpoint of the last round is kept."""
    assert_same(out, unbroken)
    last = int(hdf5file.read(out)[1]["rounds"]["round"][-1])
    assert {file.name.split("-rank")[0].split(".")[0] for file in (out / "checkpoint").iterdir()} == {f"round-{last:06d}"}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """An uninterrupted run with these settings."""
    made: dict[tuple[str, ...], Path] = {}

    def make(*more: str) -> Path:
        if more not in made:
            made[more] = tmp_path_factory.mktemp("unbroken") / "run"
            done = start([], *forks.PYTHON, "-m", "flora_hpc", *command(made[more], *more))
            assert done.returncode == 0, done.stderr
        return made[more]

    return make


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("settings", "first", "then"),
    [
        ([], 2, 1),
        (OVERLAP, 1, 2),
        pytest.param(KEEP, 2, 3, marks=pytest.mark.long),
        ([*KEEP, "-s", "client.optimizer=sgd", "-s", "client.momentum=0.5"], 2, 1),
    ],
    ids=["2 ranks, then alone", "tested during the next round", "kept optimizers on 2 ranks, then on 3", "kept momentum"],
)
def test_a_stopped_run_goes_on(
    settings: list[str], first: int, then: int, mpiexec: list[str], tmp_path: Path, unbroken: Callable[..., Path]
) -> None:
    """Only the last rank receives the signal, while it trains in round 2."""
    out = tmp_path / "run"
    done = signalled("SIGUSR1", first - 1, 2, out, *settings, under=[*mpiexec, "-n", str(first)])
    assert done.returncode == 75, done.stdout + done.stderr
    assert (
        done.stderr.count(f"a signal stopped the run after round 2 of 4; the same command with --resume --out {out} goes on") == 1
    )
    attributes, tables = hdf5file.read(out)
    assert attributes["status"] == "stopped"
    assert not (out / "adapter").exists()
    logged = [0, 1] if settings == OVERLAP else [0, 1, 2]  # that round is tested during the next one
    assert tables["rounds"]["round"].tolist() == logged
    said = resumed(out, *settings, under=[*mpiexec, "-n", str(then)])
    assert "goes on: after round 2" in said
    assert_equal(out, unbroken(*settings))
    attributes, tables = hdf5file.read(out)
    assert json.loads(attributes["resumed_after"]) == [2]
    assert attributes["world_size"] == then
    assert [len(tables["ranks"][tables["ranks"]["round"] == number]) for number in (1, 4)] == [first, then]


def test_a_round_is_abandoned_where_that_is_asked_for(tmp_path: Path, unbroken: Callable[..., Path]) -> None:
    out = tmp_path / "run"
    done = signalled("SIGTERM", 0, 3, out, "-s", "checkpoint.on_signal=abandon", under=[])
    assert (done.returncode, hdf5file.read(out)[1]["rounds"]["round"].tolist()) == (75, [0, 1, 2])
    assert "after round 2 of 4" in done.stderr
    resumed(out)
    assert_equal(out, unbroken())


@pytest.mark.mpi
def test_an_abandoned_round_leaves_kept_optimizers_as_they_were(
    mpiexec: list[str], tmp_path: Path, unbroken: Callable[..., Path]
) -> None:
    """One of two ranks receives the signal in round 4. The state after round 3 is saved, with the optimizers of that round."""
    out, settings = tmp_path / "run", [*KEEP, "-s", "checkpoint.on_signal=abandon", "-s", "checkpoint.every=2"]
    done = signalled("SIGUSR1", 1, 4, out, *settings, under=[*mpiexec, "-n", "2"])
    assert done.returncode == 75, done.stdout + done.stderr
    assert "after round 3 of 4" in done.stderr
    assert "goes on: after round 3" in resumed(out, *settings)
    assert_equal(out, unbroken(*KEEP))


def test_with_fewer_checkpoints_a_signal_still_saves(tmp_path: Path, unbroken: Callable[..., Path]) -> None:
    out = tmp_path / "run"
    done = signalled("SIGUSR1", 0, 3, out, "-s", "checkpoint.every=0", under=[])
    assert done.returncode == 75
    assert [file.name for file in (out / "checkpoint").iterdir()] == ["round-000003.safetensors"]
    resumed(out)
    assert_equal(out, unbroken())


def test_a_killed_run_without_a_checkpoint_starts_over_in_its_directory(tmp_path: Path, unbroken: Callable[..., Path]) -> None:
    out = tmp_path / "run"
    assert signalled("SIGKILL", 0, 3, out, "-s", "checkpoint.every=0", under=[]).returncode == -signal.SIGKILL
    assert "goes on: from the start" in resumed(out)
    assert_equal(out, unbroken())


def test_a_damaged_checkpoint_costs_a_round_and_is_told(tmp_path: Path, unbroken: Callable[..., Path]) -> None:
    out = tmp_path / "run"
    signalled("SIGUSR1", 0, 3, out, under=[])
    newest = out / "checkpoint" / "round-000003.safetensors"
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    said = resumed(out)
    assert f"goes on: after round 2; {newest} cannot be used (its checksum is not that of its content)" in said.replace("\n", "")
    assert_equal(out, unbroken())


def test_killed_at_any_moment_a_run_goes_on(tmp_path: Path, unbroken: Callable[..., Path]) -> None:
    """Rounds that it told of are in the log, which can be read every time. FLORA_HPC_KILLS sets how often it is killed.

    Every other time that is before it is set up: while it imports, reads what an earlier start left, or begins its files anew.
    """
    out, moments, many = tmp_path / "run", random.Random(0), [*QUICK, "-s", f"rounds={20 * KILLS}"]
    words = [sys.executable, "-u", "-m", "flora_hpc", *command(out, *many), "--resume"]
    killed, setup_seconds = 0, 0.0
    for number in range(KILLS):
        started = time.monotonic()
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) as run:
            assert run.stdout is not None
            if number % 2:
                time.sleep(moments.uniform(0, setup_seconds))
            else:
                assert any(line.startswith("set up") for line in run.stdout)
                setup_seconds = time.monotonic() - started
                time.sleep(moments.uniform(0, 0.2))
            run.kill()
            told = [int(line.split("/")[0].split()[1]) for line in run.stdout if line.startswith("round ")]
        killed += run.returncode == -signal.SIGKILL
        if (out / "run.h5").exists():
            numbers = hdf5file.read(out)[1]["rounds"]["round"].tolist()
            assert numbers == list(range(len(numbers)))
            assert max(told, default=-1) < len(numbers)
    assert killed > KILLS / 2, "the others had finished"
    resumed(out, *many)
    assert_equal(out, unbroken(*many))


def test_of_two_jobs_in_one_directory_one_plays(squares: Path, tmp_path: Path, invoke: Callable[..., str]) -> None:
    """The second one starts at any moment of the first one. FLORA_HPC_STARTS sets how often this is tried."""
    settings = ["-s", f"data={{name: hdf5, path: {squares}}}", "-s", "partition.name=iid", "-s", "rounds=20"]
    moments, refused, duration, whole = random.Random(1), 0, 5.0, tmp_path / "whole"
    invoke(*command(whole, *settings))
    for number in range(STARTS):
        out, started = tmp_path / f"run{number}", time.monotonic()
        words = [*forks.PYTHON, "-m", "flora_hpc", *command(out, *settings), "--resume"]
        jobs = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)]
        time.sleep(moments.uniform(0, duration) * (number > 0))  # the first two start at the same moment
        jobs += [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)]
        said = [job.communicate(timeout=400) for job in jobs]
        duration = time.monotonic() - started
        codes = sorted(job.returncode for job in jobs)
        if codes == [0, 2]:
            (error,) = (error for job, (_, error) in zip(jobs, said, strict=True) if job.returncode)
            assert f"--out {out}: belongs to a run that goes on: process " in error
            refused += 1
        else:
            assert codes == [0, 0], said
            assert sum("has finished already" in output for output, _ in said) == 1
        assert_equal(out, whole)
    assert refused


def test_mistakes(tmp_path: Path, invoke: Callable[..., str], unbroken: Callable[..., Path]) -> None:
    finished = unbroken()
    before = adapter(finished), (finished / "run.h5").read_bytes()
    assert "has finished already" in invoke(*command(finished), "--resume")
    assert (adapter(finished), (finished / "run.h5").read_bytes()) == before
    assert refusal("run", "configs/quickstart.yaml", "--resume") == "--resume: which run? name its directory with --out"
    other = refusal(*command(finished, "-s", "client.lr=1e-9"), "--resume")
    assert other.startswith(f"--resume: the run in {finished} is another one: client.lr was 0.0005 and is 1e-09; ")
    assert refusal(*command(finished)).endswith("go on with --resume")
    (tmp_path / "run.h5").write_text("not HDF5")
    assert "is not an HDF5 file" in refusal(*command(tmp_path), "--resume")
    file = tmp_path / "file"
    file.touch()
    assert "holds no run.h5 to go on with" in refusal(*command(file), "--resume")
