"""Every algorithm gives the same bits on 1, 2, 3 and 5 ranks, under MPI and gloo, in any order, and after an interruption.

Each algorithm of the family is played in these worlds, a new one, too. One start of ranks plays all runs of a world, since a start
costs more than a run. Adapter, state of the server, memories of clients and measured columns of a run must equal those of the run
alone.

    alone     whole runs on one rank
    mpi-2     whole runs
    gloo-3    runs that get a signal in round 2 of 4, and stop after it
    mpi-5     the same runs resumed: five ranks for four participants, so one rank has no group
    mpi-3     a few runs that are killed in round 3, by the kill of one rank
    mpi-1     the killed runs resumed

`make test` plays every third one in gloo-3 and mpi-5, and the others in mpi-2; `make test-all` plays all in all of them
(FLORA_HPC_RECIPES=all).
Not every algorithm is played with every backend, number of ranks and assignment: that would be fifteen times as many runs. The
assignment of a run is decided by the numbers of its algorithm and its world, so that each algorithm has each assignment in some
world. Five are killed, since every kill costs a start of ranks: one with memories of two parts, one with a state of the server,
one with merged weights, one whose own models begin where a first gradient led, one whose clients drop ranks.
"""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from flora_hpc import checkpoint, plugins, tensorfile
from flora_hpc.records import hdf5file
from tests import digits_file, forks
from tests.conftest import ROOT
from tests.same_runs import adapter, assert_same

pytestmark = pytest.mark.mpi

NUM_ROUNDS, NUM_CLIENTS = 4, 5
COMMON: dict[str, Any] = {
    "rounds": NUM_ROUNDS,
    "partition": {"name": "dirichlet", "num_clients": NUM_CLIENTS, "beta": 0.5},
    "cohort.size": 4,  # so that memories wait for their clients
    "client.epochs": 1,
    "client.batch_size": 8,  # so that clients take several steps
    "client.lr": 0.002,
}
SGD = {"client.optimizer": "sgd", "client.lr": 0.05}
OPTIONS: dict[str, dict[str, Any]] = {  # beside the name of the algorithm
    "scaffold": SGD,
    "feddyn": SGD,
    "fednova": {"client.momentum": 0.5} | SGD,
    "dual_lora": {"method": {"name": "dual_lora"}},
    "trimmed_mean": {"algorithm.fraction": 0.25, "algorithm.mix": "nnm"},  # of four clients; without mixing it would be the median
    "multi_krum": {"algorithm.num_chosen": 2},
    "norm_clipping": {"algorithm.bound": 0.01},
    "fltrust": {"algorithm.server_images": 10},
    "holders_only": {"method": {"name": "feddylora", "by": "divergence"}},
    "hetlora": {"method": {"name": "feddylora", "by": "divergence"}},
    "by_name": {"algorithm.private": ["*resblocks.0*.lora_B"], "algorithm.frozen": ["*resblocks.1*.lora_A"]},
}
FED_SB = {"name": "fed_sb", "rank": 4, "first_clients": 3}  # of four participants, so that some ranks compute no gradient
RECIPES: dict[str, dict[str, Any]] = {
    **{name: {"algorithm.name": name} | OPTIONS.get(name, {}) for name in plugins.members("algorithms")},
    "fedprox, optimizers kept": {"algorithm.name": "fedprox", "client.optimizer_state": "keep"},
    "multi_krum under alie": {
        "algorithm": {"name": "multi_krum", "num_chosen": 3},
        "attack": {"name": "alie", "fraction": 0.4, "deviations": 2},
    },
    "median under backdoor": {"algorithm.name": "median", "attack": {"name": "backdoor", "fraction": 0.4}},
    "fedavg under gaussian": {"algorithm.name": "fedavg", "attack": {"name": "gaussian", "fraction": 0.4}},
    "logit_calibration under label_flip": {
        "algorithm.name": "logit_calibration",
        "client.loss": "classification",
        "attack": {"name": "label_flip", "fraction": 0.4},
    },
    "rolora and median after mixing": {
        "algorithm.name": "rolora",
        "combine": {"name": "median", "mix": "nnm", "fraction": 0.25},
    },
    "fedsa_lora and top_k": {"algorithm.name": "fedsa_lora", "transform": "top_k"},
    "flexlora, mixed ranks": {
        "algorithm.name": "flexlora",
        "method": {"name": "feddylora", "by": "divergence"},
        "evaluate.cross_term": True,
        "evaluate.per_rank": True,
    },
    "hetlora that prunes, optimizers kept": {
        "algorithm": {"name": "hetlora", "prune": 0.8, "prune_penalty": 1.0, "least_rank": 2},
        "method": {"name": "feddylora", "by": "divergence", "min_rank": 3},
        "client.optimizer_state": "keep",
    },
    "fed_sb": {"algorithm.name": "fedavg", "method": FED_SB},
    "fed_sb and ditto": {"algorithm.name": "ditto", "method": FED_SB},
}
REMEMBER = {
    *("by_name", "ditto", "dual_lora", "feddyn", "fedper", "fedsa_lora", "lg_fedavg", "scaffold", "top_k"),
    *("fedprox, optimizers kept", "fedsa_lora and top_k", "fed_sb and ditto", "hetlora that prunes, optimizers kept"),
}
FORGET = {
    *("fedadagrad", "fedadam", "fedavg", "fedavgm", "fednova", "fedprox", "fedyogi", "ffa_lora", "logit_adjustment"),
    *("logit_calibration", "rolora", "median", "trimmed_mean", "krum", "multi_krum", "bulyan", "geometric_median"),
    *("centered_clipping", "norm_clipping", "fltrust", "rolora and median after mixing"),
    *("median under backdoor", "multi_krum under alie", "fedavg under gaussian", "logit_calibration under label_flip"),
    *("logit_calibration", "rolora", "flexlora", "lora_fair", "fedsvd", "lora_a2", "holders_only", "flexlora, mixed ranks"),
    *("fedex_lora", "flora_stacking", "hetlora", "hlora", "fed_sb"),
}
ASSIGNMENTS: tuple[dict[str, Any], ...] = (
    {"cohort.assignment": "dynamic"},
    {"cohort.assignment": "static", "client.group_size": 1},
    {"cohort.assignment": "balanced"},
)


class World(NamedTuple):
    """How runs are started."""

    backend: str
    num_ranks: int


WORLDS = {"mpi-2": World("mpi", 2), "gloo-3": World("gloo", 3), "mpi-5": World("mpi", 5)}
# memories, a server's state, merged weights, rows, a first gradient, ranks that change
MUST = ("scaffold", "fedadam", "fedex_lora", "median", "flexlora, mixed ranks", "fed_sb", "hetlora that prunes, optimizers kept")
ALL = os.environ.get("FLORA_HPC_RECIPES") == "all"
RESUMED = list(RECIPES) if ALL else sorted({*list(RECIPES)[::3], *MUST})
WHOLE = [name for name in RECIPES if ALL or name not in RESUMED]
STOPS = {name: (("SIGUSR1", 1, 2), ("SIGTERM", 0, 2))[number % 2] for number, name in enumerate(RESUMED)}
KILLED = ("fedsa_lora and top_k", "fedadam", "fedex_lora", "fed_sb and ditto", "hetlora that prunes, optimizers kept")
Start = Callable[..., int]


def assignment(name: str, world: str) -> dict[str, Any]:
    """The assignment of a recipe in a world; it differs between the worlds."""
    return ASSIGNMENTS[(list(RECIPES).index(name) + list(WORLDS).index(world)) % len(ASSIGNMENTS)]


@pytest.fixture(scope="module")
def start(mpiexec: list[str], python: list[str], tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Play runs in a folder, name -> options: the exit status."""
    data = {"data": {"name": "hdf5", "path": str(digits_file.write(tmp_path_factory.mktemp("digits") / "few.h5", 90, 30))}}

    def call(folder: Path, runs: dict[str, dict[str, Any]], world: World | None = None, **ends: tuple[str, int, int]) -> int:
        launcher = python
        if world is not None:
            ranks = str(world.num_ranks)
            launcher = forks.torchrun(world.num_ranks) if world.backend == "gloo" else [*mpiexec, "-n", ranks, *python]
        options = {name: COMMON | data | RECIPES[name] | more for name, more in runs.items()}
        command = [*launcher, str(ROOT / "tests" / "many_runs.py"), str(folder), "yes", json.dumps(options), json.dumps(ends)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
        assert done.returncode == 0 or "SIGKILL" in str(ends), done.stdout + done.stderr
        return done.returncode

    return call


@pytest.fixture(scope="module")
def alone(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All recipes on one rank."""
    folder = tmp_path_factory.mktemp("alone")
    start(folder, {name: {} for name in RECIPES})
    return folder


@pytest.fixture(scope="module")
def played(start: Start, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All recipes in all worlds: world -> folder. Runs are stopped in gloo-3, and resumed in mpi-5."""
    stopped = tmp_path_factory.mktemp("stopped")
    folders = {"mpi-2": tmp_path_factory.mktemp("mpi-2"), "gloo-3": stopped, "mpi-5": stopped}
    for name, folder in folders.items():
        recipes = WHOLE if name == "mpi-2" else RESUMED
        runs = {recipe: {"evaluate.overlap": True} | assignment(recipe, name) for recipe in recipes}
        start(folder, runs, WORLDS[name], **(STOPS if name == "gloo-3" else {}))
        if name == "gloo-3":
            for recipe in RESUMED:
                assert hdf5file.read(folder / recipe)[0]["status"] == "stopped"
                assert state(folder / recipe, 2).round == 2
    return folders


def state(out: Path, number: int = NUM_ROUNDS) -> checkpoint.Checkpoint:
    """The state after a round."""
    return checkpoint.read(checkpoint.path(out / "checkpoint", number).read_bytes())


def memories(out: Path) -> dict[int, bytes]:
    """The rows of the clients after the last round, whichever rank wrote them: client -> numbers."""
    rows: dict[int, bytes] = {}
    for name in state(out).parts:
        tensors, _ = tensorfile.read((out / "checkpoint" / name).read_bytes())
        assert not rows.keys() & set(tensors["clients"].tolist()), "a client has one home"
        rows |= {int(client): row.numpy().tobytes() for client, row in zip(tensors["clients"], tensors["rows"], strict=True)}
    return rows


def assert_same_bits(out: Path, other: Path) -> None:
    """Adapter, measured columns, state of the server, and the memory of every client."""
    assert_same(out, other)
    torch.testing.assert_close(state(out).server, state(other).server, rtol=0, atol=0)
    torch.testing.assert_close(state(out).merged, state(other).merged, rtol=0, atol=0)
    assert memories(out) == memories(other)


def test_recipes_differ_and_what_clients_remember_is_saved(alone: Path) -> None:
    """So that the tests below compare something."""
    digests = {name: (hashlib.blake2b(adapter(alone / name)).digest(), memories(alone / name)) for name in RECIPES}
    same = {name for name in RECIPES if list(digests.values()).count(digests[name]) > 1}  # ditto has the adapter of fedavg
    assert same == set()
    for name in RECIPES:
        rows = memories(alone / name)
        assert len(rows) in ({0} if name in FORGET else {NUM_CLIENTS} if name in REMEMBER else {0, NUM_CLIENTS}), name
        assert len(set(rows.values())) == len(rows), "every client remembers something of its own"
        losses = hdf5file.read(alone / name)[1]["rounds"]["train_loss"][1:]
        assert np.isfinite(losses).all(), name
    clients = hdf5file.read(alone / "hetlora that prunes, optimizers kept")[1]["clients"]
    assert (clients["uplink_bytes"] < clients["downlink_bytes"]).any(), "no client drops a rank"


@pytest.mark.parametrize("name", WHOLE)
def test_two_ranks_give_the_same_bits(name: str, played: dict[str, Path], alone: Path) -> None:
    assert_same_bits(played["mpi-2"] / name, alone / name)
    attributes = hdf5file.read(played["mpi-2"] / name)[0]
    assert (attributes["world_size"], attributes["backend"]) == (2, "mpi")


@pytest.mark.parametrize("name", RESUMED)
def test_three_ranks_of_gloo_and_then_five_of_mpi_give_the_same_bits(name: str, played: dict[str, Path], alone: Path) -> None:
    """Memories were written by three ranks, and read by five, of which one has no client."""
    assert_same_bits(played["mpi-5"] / name, alone / name)
    attributes, tables = hdf5file.read(played["mpi-5"] / name)
    assert (attributes["world_size"], json.loads(attributes["resumed_after"])) == (5, [2])
    ranks = tables["ranks"]
    assert [int((ranks["round"] == number).sum()) for number in range(1, 5)] == [3, 3, 5, 5]
    assert ((ranks["num_clients"] == 0) & (ranks["round"] == 4)).any()


@pytest.mark.parametrize("name", KILLED)
def test_a_run_that_was_killed_goes_on_with_the_same_bits(name: str, start: Start, alone: Path, tmp_path: Path) -> None:
    """On three ranks, one of which is killed in round 3, and then on one rank."""
    assert start(tmp_path, {name: {}}, World("mpi", 3), **{name: ("SIGKILL", 1, 3)}) != 0
    assert hdf5file.read(tmp_path / name)[0]["status"] == "running"
    start(tmp_path, {name: {"cohort.assignment": "dynamic"}}, World("mpi", 1))
    assert_same_bits(tmp_path / name, alone / name)
    attributes = hdf5file.read(tmp_path / name)[0]
    (after,) = json.loads(attributes["resumed_after"])
    assert (attributes["world_size"], after in (1, 2)) == (1, True)


@pytest.mark.parametrize("name", RECIPES)
def test_each_assignment_is_tried(name: str) -> None:
    assert {assignment(name, world)["cohort.assignment"] for world in WORLDS} == {"static", "balanced", "dynamic"}
