"""Algorithms whose clients or server remember something: the same bits on any ranks, in any order, and after an interruption.

A start of the program plays all recipes, one after another: runs of a second each, and one start of ranks for all of them.
"""

import hashlib
import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from flora_hpc import checkpoint, tensorfile
from flora_hpc.records import hdf5file
from tests import forks
from tests.conftest import ROOT
from tests.same_runs import adapter, assert_same
from tests.test_world_sizes import few_digits  # noqa: F401 -- a fixture

pytestmark = pytest.mark.mpi

NUM_ROUNDS = 3
COMMON: dict[str, Any] = {
    "rounds": NUM_ROUNDS,
    "partition": {"name": "dirichlet", "num_clients": 5, "beta": 0.5},
    "cohort.size": 4,  # so that memories wait for their clients
    "client.epochs": 1,
    "client.lr": 0.002,
}
SGD = {"client.optimizer": "sgd", "client.lr": 0.05}
RECIPES: dict[str, dict[str, Any]] = {
    "scaffold": {"algorithm": "scaffold"} | SGD,
    "ditto": {"algorithm": "ditto"},
    "fedsa_lora": {"algorithm": "fedsa_lora"},
    "feddyn": {"algorithm": "feddyn"} | SGD,
    "rolora": {"algorithm": "rolora"},
    "ffa_lora": {"algorithm": "ffa_lora"},
    "fednova": {"algorithm": "fednova", "client.momentum": 0.5} | SGD,
    "fedadam": {"algorithm": "fedadam"},
    "top_k": {"algorithm": "top_k"},
    "logit_calibration": {"algorithm": "logit_calibration"},
    "fedprox, optimizers kept": {"algorithm": "fedprox", "client.optimizer_state": "keep"},
    "fedsa_lora and top_k": {"algorithm": "fedsa_lora", "transform": "top_k"},
}
THREE = ("scaffold", "ditto", "fedsa_lora")
REMEMBER = ("scaffold", "ditto", "fedsa_lora", "feddyn", "top_k", "fedprox, optimizers kept", "fedsa_lora and top_k")
DYNAMIC = {"cohort.assignment": "dynamic", "evaluate.overlap": True}
STATIC = {"cohort.assignment": "static", "client.group_size": 1}


class Way(NamedTuple):
    """How runs are started."""

    ranks: int | str  # 0: alone
    recipes: Sequence[str]
    options: dict[str, Any]


WAYS = {
    "mpi-2-dynamic": Way(2, tuple(RECIPES), DYNAMIC),
    "mpi-3": Way(3, THREE, {}),
    "mpi-5-static": Way(5, THREE, STATIC),  # more ranks than participants
    "gloo-2": Way("gloo", REMEMBER, {}),
}
STOPS = {"scaffold": ("SIGUSR1", 1, 2), "ditto": ("SIGTERM", 0, 2), "fedsa_lora and top_k": ("SIGKILL", 1, 3)}  # the last ends all


@pytest.fixture(scope="module")
def start(few_digits: Path, mpiexec: list[str], python: list[str]) -> Callable[..., int]:  # noqa: F811
    """Play runs of recipes in a folder: the exit status."""

    def call(folder: Path, ranks: int | str, names: Sequence[str], more: dict[str, Any], ends: dict[str, Any]) -> int:
        data = {"data": {"name": "hdf5", "path": str(few_digits)}}
        runs = {name: COMMON | data | RECIPES[name] | more for name in names}
        launcher = forks.torchrun(2) if ranks == "gloo" else [*([*mpiexec, "-n", str(ranks)] if ranks else []), *python]
        command = [*launcher, str(ROOT / "tests" / "algorithm_runs.py"), str(folder), json.dumps(runs), json.dumps(ends)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
        assert done.returncode == 0 or "SIGKILL" in str(ends), done.stdout + done.stderr
        return done.returncode

    return call


@pytest.fixture(scope="module")
def alone(start: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All recipes on one rank."""
    folder = tmp_path_factory.mktemp("alone")
    start(folder, 0, tuple(RECIPES), {}, {})
    return folder


@pytest.fixture(scope="module")
def resumed(start: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that were stopped or killed on two ranks, and resumed on three."""
    folder = tmp_path_factory.mktemp("resumed")
    assert start(folder, 2, tuple(STOPS), {}, STOPS) != 0
    for name, (signal, *_) in STOPS.items():
        status = hdf5file.read(folder / name)[0]["status"]
        assert status == ("running" if signal == "SIGKILL" else "stopped")
    start(folder, 3, tuple(STOPS), {"cohort.assignment": "dynamic"}, {})
    return folder


def memories(out: Path) -> dict[int, bytes]:
    """The rows of the clients after the last round, whichever rank wrote them: client -> numbers."""
    rows: dict[int, bytes] = {}
    folder = out / "checkpoint"
    for name in checkpoint.read(checkpoint.path(folder, NUM_ROUNDS).read_bytes()).parts:
        tensors, _ = tensorfile.read((folder / name).read_bytes())
        assert not rows.keys() & set(tensors["clients"].tolist()), "a client has one home"
        rows |= {int(client): row.numpy().tobytes() for client, row in zip(tensors["clients"], tensors["rows"], strict=True)}
    return rows


def test_recipes_differ_and_what_clients_remember_is_saved(alone: Path) -> None:
    """So that the tests below compare something."""
    digests = {name: hashlib.blake2b(adapter(alone / name)).digest() for name in RECIPES}
    same = {name for name in RECIPES if list(digests.values()).count(digests[name]) > 1}
    assert same == set()
    for name in RECIPES:
        rows = memories(alone / name)
        assert len(rows) == (5 if name in REMEMBER else 0), name
        assert len(set(rows.values())) == len(rows), "every client remembers something of its own"
        losses = hdf5file.read(alone / name)[1]["rounds"]["train_loss"][1:]
        assert np.isfinite(losses).all(), name


@pytest.mark.parametrize("name", WAYS)
def test_any_number_of_ranks_gives_the_same_bits(name: str, alone: Path, start: Callable[..., int], tmp_path: Path) -> None:
    """Adapter, measured columns, and the memory of every client."""
    way = WAYS[name]
    start(tmp_path, way.ranks, way.recipes, way.options, {})
    for recipe in way.recipes:
        assert_same(tmp_path / recipe, alone / recipe)
        assert memories(tmp_path / recipe) == memories(alone / recipe), recipe
        if way.ranks == 5:
            ranks = hdf5file.read(tmp_path / recipe)[1]["ranks"]
            assert (ranks["num_clients"][ranks["round"] == 1] == 0).sum() == 1


@pytest.mark.parametrize("recipe", STOPS)
def test_a_run_that_was_interrupted_goes_on_with_the_same_bits(recipe: str, resumed: Path, alone: Path) -> None:
    """Memories were written by two ranks, and read by three."""
    assert_same(resumed / recipe, alone / recipe)
    assert memories(resumed / recipe) == memories(alone / recipe)
    attributes, tables = hdf5file.read(resumed / recipe)
    assert attributes["world_size"] == 3
    (after,) = json.loads(attributes["resumed_after"])
    assert after in ((2,) if STOPS[recipe][0] != "SIGKILL" else (1, 2))
    assert len(tables["ranks"][tables["ranks"]["round"] == NUM_ROUNDS]) == 3
