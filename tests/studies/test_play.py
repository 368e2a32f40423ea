"""Studies that are played: the bits of lone runs under any launcher, failures, signals, kills, resumes."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest

from flora_hpc.owner.claim import Claim
from flora_hpc.records.study import Study, open_study
from tests import forks
from tests.conftest import ROOT
from tests.same_runs import adapter, assert_same

pytestmark = pytest.mark.usefixtures("python")

Flora = Callable[..., subprocess.CompletedProcess[str]]
CONFIG = str(ROOT / "configs" / "quickstart.yaml")
SMALL = ["-s", "rounds=2", "-s", "client.epochs=1", "-s", "partition.num_clients=5"]
GRID = ["method.name=flora,fedlc", "client.lr=5e-4,1e-3"]
KILLS = int(os.environ.get("FLORA_HPC_KILLS", "2"))


@pytest.fixture(scope="module")
def lone(flora: Flora, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """A run of its own, started by `flora-hpc run`."""
    runs: dict[tuple[str, str], Path] = {}

    def play(method: str, lr: str) -> Path:
        if (method, lr) not in runs:
            out = runs[method, lr] = tmp_path_factory.mktemp("lone") / "run"
            done = flora("run", CONFIG, *SMALL, "-s", f"method.name={method}", "-s", f"client.lr={lr}", "--out", out, "-q")
            assert done.returncode == 0, done.stderr
        return runs[method, lr]

    return play


def folder(study: Study, name: str) -> Path:
    return study.path / "points" / name


def table(study: Study) -> list[tuple[object, ...]]:
    """What must not depend on ranks, kills and order."""
    return [(p.name, p.status, p.num_rounds, p.final_test_accuracy, p.best_round, p.uplink_bytes) for p in study.rows]


@pytest.mark.parametrize(
    ("launcher", "options"),
    [
        ([], []),
        (["mpiexec", "-n", "2"], []),
        (["mpiexec", "-n", "3"], ["--ranks-per-run", "2"]),
        (["mpiexec", "-n", "2"], ["--ranks-per-run", "4", "-s", "comm.backend=gloo"]),
    ],
    ids=["alone", "2 ranks", "2 ranks and 1", "2 ranks of gloo together"],
)
def test_every_point_has_the_bits_of_its_lone_run(
    launcher: list[str], options: list[str], flora: Flora, mpiexec: list[str], lone: Callable[[str, str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "study"
    done = flora("study", CONFIG, *GRID, *SMALL, *options, "--out", out, under=[*mpiexec, *launcher[1:]] if launcher else None)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "point 4/4 |" in done.stdout
    assert "4 of 4 points finished" in done.stdout
    study = open_study(out)
    assert [point.status for point in study.rows] == ["finished"] * 4
    for method in ("flora", "fedlc"):
        for lr, text in (("5e-4", "0.0005"), ("1e-3", "0.001")):
            run = folder(study, f"method={method},lr={text}")
            assert_same(run, lone(method, lr))
            assert json.loads((run / "signac_statepoint.json").read_text()) == {
                "method": {"name": method},
                "client": {"lr": float(lr)},
            }
    linked = {link.resolve().name for link in (out / "workspace").iterdir()}
    assert linked == {point.name for point in study.rows}


def test_a_failing_point_is_noted_and_the_rest_is_played(flora: Flora, mpiexec: list[str], tmp_path: Path) -> None:
    """A file that is not there, and a batch that no memory holds: both are known when their turn comes."""
    out, missing = tmp_path / "study", tmp_path / "nothing.h5"
    section = "study:\n  points:\n  - {client.lr: 1.0e-3}\n  - data: {name: hdf5, path: %s}\n  - {client.batch_size: 1000000000}\n"
    config = tmp_path / "config.yaml"
    config.write_text(f"base: {CONFIG}\n" + section % missing)
    done = flora("study", config, *SMALL, "--out", out, under=[*mpiexec, "-n", "2"])
    assert done.returncode == 1, done.stdout + done.stderr
    good, no_data, too_large = open_study(out).rows
    assert (good.status, no_data.status, too_large.status) == ("finished", "failed", "failed")
    assert str(missing) in no_data.message
    assert "does not fit in memory" in too_large.message
    for row in (no_data, too_large):
        assert f"failed: {row.name}: {row.message}" in done.stdout
    assert not (folder(open_study(out), no_data.name) / "run.h5").exists()
    again = flora("study", "--resume", "--out", out)
    assert again.returncode == 1
    assert open_study(out).rows[0] == good


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_bug_in_one_point_does_not_end_the_others(ranks: int, flora: Flora, mpiexec: list[str], tmp_path: Path) -> None:
    part = tmp_path / "odd.py"
    part.write_text(
        '"""Raises an error that nobody foresaw."""\nfrom flora_hpc.parts import *\nFAMILY = "partitioners"\n'
        "class Options(PartitionOptions):\n    num_clients: int = 3\n"
        "def build(options, images):\n    raise ZeroDivisionError('odd')\n"
    )
    out = tmp_path / "study"
    words = ["study", CONFIG, "partition.name=iid,odd", *SMALL, "--plugin", part, "--out", out, "--ranks-per-run", ranks]
    done = flora(*words, under=[*mpiexec, "-n", "2"])
    assert done.returncode == 1, done.stdout + done.stderr
    good, odd = open_study(out).rows
    assert (good.status, odd.status) == ("finished", "failed")
    assert "ZeroDivisionError: odd" in odd.message
    words = ["study", "--resume", "--out", out]
    assert f"add --plugin {part}" in flora(*words).stderr
    assert flora(*words, "--plugin", part).returncode == 1
    assert ranks > 1 or (folder(open_study(out), odd.name) / "error.txt").read_text().endswith("ZeroDivisionError: odd\n")


def test_a_signal_saves_every_run_and_the_study_goes_on_on_other_ranks(
    flora: Flora, mpiexec: list[str], lone: Callable[[str, str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "study"
    words = ["study", CONFIG, *GRID, *SMALL, "-s", "rounds=60", "--out", str(out)]
    job = subprocess.Popen(
        [*mpiexec, "-n", "2", *forks.PYTHON, "-m", "flora_hpc", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: len(list(out.glob("points/*/checkpoint/round-*"))) >= 2, job)
    job.send_signal(signal.SIGUSR1)
    _, errors = job.communicate(timeout=120)
    assert job.returncode == 75, errors
    assert f"a signal stopped the study when 0 of 4 points had finished; `flora-hpc study --resume --out {out}` goes on" in errors
    study = open_study(out)
    assert sorted(point.status for point in study.rows) == ["stopped", "stopped", "waiting", "waiting"]
    assert all(point.num_rounds > 0 for point in study.rows if point.status == "stopped")
    done = flora("study", CONFIG, *GRID, *SMALL, "-s", "rounds=60", "--resume", "--out", out, under=[*mpiexec, "-n", "3"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert [point.num_rounds for point in open_study(out).rows] == [60] * 4


def test_a_lost_rank_costs_its_point_where_the_launcher_lets_the_others_live(flora: Flora, tmp_path: Path) -> None:
    """Two processes with torchrun's variables, but without torchrun, which ends all ranks with the first one."""
    out, grid = tmp_path / "study", ["client.lr=1e-4,5e-4,1e-3"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "x",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    words = ["study", CONFIG, *grid, *SMALL, "-s", "rounds=12", "-s", "comm.backend=gloo", "--out", str(out)]
    jobs = [
        subprocess.Popen(
            [*forks.PYTHON, "-m", "flora_hpc", *words],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    wait_for(lambda: len(list(out.glob("points/*/checkpoint/round-*"))) >= 2, jobs[1])
    jobs[1].kill()
    _, errors = jobs[0].communicate(timeout=120)
    assert jobs[0].returncode == 1
    assert "A rank was lost. What finished is kept" in errors
    assert sorted(point.status for point in open_study(out).rows) == ["finished", "finished", "stopped"]
    jobs[1].communicate()
    assert flora("study", "--resume", "--out", out).returncode == 0
    assert [point.num_rounds for point in open_study(out).rows] == [12] * 3


def wait_for(condition: Callable[[], bool], job: "subprocess.Popen[str]") -> None:
    limit = time.monotonic() + 120
    while not condition():
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_killed_at_any_moment_a_study_comes_to_the_same_table(flora: Flora, mpiexec: list[str], tmp_path: Path) -> None:
    """FLORA_HPC_KILLS sets how often it is killed."""
    words, rng = ["study", CONFIG, *GRID, *SMALL, "-s", "rounds=8"], random.Random(5)
    reference = tmp_path / "reference"
    started = time.monotonic()
    done = flora(*words, "--out", reference)
    assert done.returncode == 0, done.stderr
    seconds = time.monotonic() - started
    out, killed = tmp_path / "study", 0
    for number in range(KILLS):
        under = [*mpiexec, "-n", str(number % 3 + 1)] if number % 3 else []
        job = subprocess.Popen(
            [*under, *forks.PYTHON, "-m", "flora_hpc", *words, "--resume", "--out", str(out)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while job.poll() is None and number and not in_flight(out):
            time.sleep(0.02)
        with contextlib.suppress(subprocess.TimeoutExpired):  # the first time at any moment of the start, later during a run
            job.wait(rng.uniform(0.0, 0.2) if number else rng.uniform(0.0, 0.5) * seconds)
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            killed += in_flight(out)
        job.wait()
        wait_until_nobody_owns(out)
    assert killed > 0, "no run was in flight at any kill"
    done = flora(*words, "--resume", "--out", out, under=[*mpiexec, "-n", "2"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert table(open_study(out)) == table(open_study(reference))
    shown = [flora("study", "show", folder).stdout for folder in (out, reference)]
    assert shown[0].replace(str(out), "") == shown[1].replace(str(reference), "")
    for point in open_study(out).rows:
        assert adapter(out / "points" / point.name) == adapter(reference / "points" / point.name)


def in_flight(out: Path) -> bool:
    """Whether a run has begun and has not ended."""
    return any(not file.with_name("point.json").exists() for file in out.glob("points/*/run.h5"))


def wait_until_nobody_owns(out: Path) -> None:
    """mpiexec's ranks, which have a session of their own, die a moment after it."""
    limit = time.monotonic() + 30
    while time.monotonic() < limit:
        owners = [json.loads(file.read_text() or "{}") for file in out.glob("**/owner-*.json")]
        if not any(Path(f"/proc/{owner.get('pid', 0)}").exists() for owner in owners if not owner.get("ended")):
            return
        time.sleep(0.05)


def test_a_grid_grows_and_finished_points_stay(flora: Flora, tmp_path: Path) -> None:
    out = tmp_path / "study"
    assert flora("study", CONFIG, "client.lr=1e-3", *SMALL, "--out", out).returncode == 0
    before = (out / "points" / "lr=0.001" / "run.h5").stat()
    done = flora("study", CONFIG, "client.lr=1e-3,5e-4", *SMALL, "--resume", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [point.status for point in open_study(out).rows] == ["finished"] * 2
    after = (out / "points" / "lr=0.001" / "run.h5").stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)


def test_more_rounds_extend_finished_points(flora: Flora, lone: Callable[[str, str], Path], tmp_path: Path) -> None:
    out, words = tmp_path / "study", ["study", CONFIG, "client.lr=1e-3", *SMALL]
    assert flora(*words, "-s", "rounds=1", "--out", out).returncode == 0
    assert [point.num_rounds for point in open_study(out).rows] == [1]
    done = flora(*words, "--resume", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [point.num_rounds for point in open_study(out).rows] == [2]
    assert adapter(out / "points" / "lr=0.001") == adapter(lone("flora", "1e-3"))


@pytest.mark.long
def test_a_world_that_is_cut_anew_shares_nothing_of_before(flora: Flora, mpiexec: list[str], tmp_path: Path) -> None:
    """Four ranks as one part of three and more, then as two parts: their ranks have seen other data before."""
    out, config = tmp_path / "study", tmp_path / "config.yaml"
    points = [(3, 0.1, 5e-4), (3, 0.2, 5e-4), (2, 0.2, 1e-3), (2, 0.1, 1e-3)]
    section = [{"ranks_per_run": n, "data.validation_fraction": part, "client.lr": lr} for n, part, lr in points]
    config.write_text(f"base: {CONFIG}\nstudy: {json.dumps({'points': section})}\n")
    done = flora("study", config, *SMALL, "--out", out, under=[*mpiexec, "-n", "4"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(point.num_ranks for point in open_study(out).rows) == [2, 2, 4, 4]
    alone = tmp_path / "alone"
    assert flora("study", config, *SMALL, "--out", alone).returncode == 0
    for point in open_study(alone).rows:
        assert_same(out / "points" / point.name, alone / "points" / point.name)


def test_a_part_of_the_user_that_changed_ends_the_study_at_once(flora: Flora, tmp_path: Path) -> None:
    part, out = tmp_path / "mine.py", tmp_path / "study"
    text = (ROOT / "flora_hpc" / "data" / "partitioners" / "iid.py").read_text()
    part.write_text(text.replace('"""', 'FAMILY = "partitioners"\n"""', 0) + '\nFAMILY = "partitioners"\n')
    words = ["study", CONFIG, "partition.name=mine", *SMALL, "--plugin", part, "--out", out]
    assert flora(*words).returncode == 0
    part.write_text(part.read_text() + "\n# another rule\n")
    done = flora(*words, "--resume")
    assert done.returncode == 2
    assert "partitioner mine: changed since partition=mine in" in done.stderr


def test_a_corrected_part_lets_its_failed_points_begin_anew(flora: Flora, tmp_path: Path) -> None:
    part, out = tmp_path / "late.py", tmp_path / "study"
    code = (
        '"""Fails in round 2 until it is corrected."""\nfrom flora_hpc.parts import *\nFAMILY = "algorithms"\n'
        'FORMULA, UP, DOWN, PAPER = "x + D", "", "", ""\nclass Options(BaseOptions):\n    pass\n'
        "def build(options, setting):\n"
        "    def apply(adapter, direction, state, now):\n"
        "        if now.round == 2: raise ZeroDivisionError('late')\n"
        "        return adapter + direction, state\n"
        "    return Algorithm(server=Server(lambda adapter: None, apply))\n"
    )
    part.write_text(code)
    words = ["study", CONFIG, "algorithm=fedavg,late", *SMALL, "--plugin", part, "--out", out]
    assert flora(*words).returncode == 1
    assert [point.status for point in open_study(out).rows] == ["finished", "failed"]
    part.write_text(code.replace("now.round == 2", "now.round == 99"))
    done = flora("study", "--resume", "--out", out, "--plugin", part)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [point.status for point in open_study(out).rows] == ["finished", "finished"]


def test_data_that_changed_between_two_points_are_told(flora: Flora, squares: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    words = [
        "study",
        CONFIG,
        "client.lr=1e-3",
        "-s",
        f"data={{name: hdf5, path: {squares}}}",
        *SMALL,
        "-s",
        "partition={name: iid, num_clients: 2}",
    ]
    assert flora(*words, "--out", out).returncode == 0
    with h5py.File(squares, "a") as file:
        file["train/images"][0] += 1
    words[2] += ",5e-4"
    done = flora(*words, "--resume", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lr=0.001 and lr=0.0005 name the same data and model, but their files changed in between" in done.stderr


def test_a_study_goes_on_from_another_directory(flora: Flora, squares: Path, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    out, data = tmp_path / "study", os.path.relpath(squares, ROOT)  # `flora` starts in ROOT
    words = [
        "study",
        CONFIG,
        "client.lr=1e-3",
        "-s",
        f"data={{name: hdf5, path: {data}}}",
        *SMALL,
        "-s",
        "partition={name: iid, num_clients: 2}",
    ]
    assert flora(*words, "--prepare", "--out", out).returncode == 0
    done = subprocess.run(
        [*forks.PYTHON, "-m", "flora_hpc", "study", "--resume", "--out", str(out)],
        cwd=tmp_path / "here",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_point_of_another_process_is_left_alone(flora: Flora, tmp_path: Path) -> None:
    out = tmp_path / "study"
    assert flora("study", CONFIG, "client.lr=1e-3,5e-4", *SMALL, "--prepare", "--out", out).returncode == 0
    with Claim(out / "points" / "lr=0.001") as claim:
        claim.take()
        done = flora("study", "--resume", "--out", out)
    assert done.returncode == 1
    assert "lr=0.001: belongs to a run that goes on" in done.stderr
    assert [point.status for point in open_study(out).rows] == ["waiting", "finished"]


def test_shards_play_their_own_points_and_prepare_plays_none(flora: Flora, tmp_path: Path) -> None:
    out = tmp_path / "study"
    done = flora("study", CONFIG, *GRID, *SMALL, "--prepare", "--out", out)
    assert done.returncode == 0, done.stderr
    assert [point.status for point in open_study(out).rows] == ["waiting"] * 4
    done = flora("study", "--resume", "--out", out, "--shard", "1/2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [point.status for point in open_study(out).rows] == ["waiting", "finished"] * 2
    assert "2 of 2 points finished" in done.stdout


def test_a_dry_run_lists_points_and_writes_nothing(flora: Flora, tmp_path: Path) -> None:
    out = tmp_path / "study"
    done = flora("study", CONFIG, "client.batch_size=32,1000000000", *SMALL, "--dry-run", "--out", out)
    assert done.returncode == 0, done.stderr
    small, large = (line for line in done.stdout.splitlines() if line.startswith("batch_size="))
    assert small.split()[:2] == ["batch_size=32", "5"]
    assert "does not fit in memory" in done.stdout
    assert "batch_size=1000000000" in large
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["study", CONFIG, "client.lrr=1,2"], "unknown key; did you mean client.lr?"),
        (["study", "--out", "x"], "study: give a CONFIG"),
        (["study", CONFIG, "other.yaml"], "is a second CONFIG"),
        (["study", CONFIG, "--resume"], "name its directory with --out"),
        (["study", "--resume", "--out", "no-such-study"], "holds no study"),
        (["study", "--resume", "--out", "x", "client.lr=1"], "goes on with the study as it is"),
        (["study", CONFIG, "--shard", "2/2"], "give I/N"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(words: list[str], sentence: str, flora: Flora) -> None:
    done = flora(*words)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (ROOT / "no-such-study").exists()


def test_a_study_is_not_begun_twice(flora: Flora, tmp_path: Path) -> None:
    out = tmp_path / "study"
    assert flora("study", CONFIG, "client.lr=1e-3,5e-4", *SMALL, "--prepare", "--out", out).returncode == 0
    done = flora("study", CONFIG, "client.lr=1e-3,5e-4", *SMALL, "--out", out)
    assert done.returncode == 2
    assert "already holds a study" in done.stderr
