"""Runs as samples, and runs that cannot serve."""

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from flora_hpc import api
from flora_hpc.bench.predict import measure, outcome, point, samples
from flora_hpc.bench.predict.drivers import COLUMNS
from flora_hpc.bench.predict.point import Target
from flora_hpc.errors import UserError
from tests.bench.predict.made import SHARED, config, sample, various


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("predict") / "run"
    api.run(config(cohort__size=4), out=out, rounds=3, shared=SHARED, signals=False)
    return out


def test_seconds_of_a_run(run: Path) -> None:
    (each,) = samples.read([run], config(), SHARED, False)
    assert (each.num_ranks, each.num_nodes, each.other, each.num_rows, len(each.round_seconds)) == (1, 1, "", 12, 2)
    assert {phase: took.shape for phase, took in each.seconds.items()} == dict.fromkeys(COLUMNS, (2, 1))
    total = sum(took[:, 0] for took in each.seconds.values())
    np.testing.assert_allclose(total, each.round_seconds, rtol=1e-6)
    assert not each.seconds["jacobian"].any(), "four clients make their first step by themselves"
    assert samples.describe(each) == f"{run} (1 rank, 4 clients, batch 32)"


def test_a_run_of_another_model_serves_for_phases_without_the_model(run: Path) -> None:
    other = samples.sample(run, config(method__rank=8), SHARED)
    assert other.other == "method.rank (2 there, 8 here)"
    assert [phase for phase in COLUMNS if other.serves(phase)] == ["batch", "log"], "and comm, with two ranks"
    assert sample(2).serves("comm")


def test_a_jacobian_is_told_from_training_by_the_rows_of_clients(tmp_path: Path) -> None:
    """What a rank does beyond its groups, whose seconds /clients has; where it has some clients only, their mean counts for all."""
    for rows in ("all", "sample 3"):
        by_one = config(cohort__size=6, client__first_step="jacobian", records__clients=rows)
        run = api.run(by_one, out=tmp_path / rows, rounds=4, shared=SHARED, signals=False)
        (each,) = samples.read([tmp_path / rows], by_one, SHARED, False)
        ranks = run.tables["ranks"][run.tables["ranks"]["round"] >= 2]
        clients = run.tables["clients"][run.tables["clients"]["round"] >= 2]
        in_groups = clients["train_seconds"].reshape(3, -1).mean(1) * 6
        work = sum(ranks[f"{phase}_seconds"] for phase in ("batch", "train", "sum"))
        # batches and sums of a busy machine may take so long that the rest is more than all training
        beyond = np.minimum(work - in_groups - each.drivers.deal_seconds, ranks["train_seconds"])
        np.testing.assert_allclose(each.seconds["jacobian"][:, 0], beyond, rtol=1e-4)
        np.testing.assert_allclose((each.seconds["jacobian"] + each.seconds["train"])[:, 0], ranks["train_seconds"])


def damaged(folder: Path, run: Path) -> Path:
    (folder / "run.h5").write_bytes((run / "run.h5").read_bytes()[:200])
    return folder


def old(folder: Path, run: Path) -> Path:
    (folder / "run.h5").write_bytes((run / "run.h5").read_bytes())
    with h5py.File(folder / "run.h5", "r+") as file:
        file.attrs["schema"] = 2
    return folder


def short(folder: Path, run: Path) -> Path:
    api.run(config(cohort__size=2), out=folder / "short", rounds=1, shared=SHARED, signals=False)
    return folder / "short"


def text(folder: Path, run: Path) -> Path:
    (folder / "result.json").write_text("{")
    return folder / "result.json"


def foreign(folder: Path, run: Path) -> Path:
    (folder / "result.json").write_text(json.dumps({"result_schema": 99}))
    return folder / "result.json"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder, run: folder / "none", "holds no run"),
        (damaged, "run.h5"),
        (old, "has schema 2, without the phases batch and sum; play it again"),
        (short, "has no round after round 1, which only warms up; give it rounds: 5 or more"),
        (text, "is no JSON, or only a part of it"),
        (foreign, "version 99"),
    ],
)
def test_what_is_no_sample(make: Callable[[Path, Path], Path], says: str, run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        samples.read([make(tmp_path, run)], config(), SHARED, False)


def test_runs_that_do_not_fit(run: Path) -> None:
    with pytest.raises(UserError, match=r"no run has the same work: .* differs in method.rank \(2 there, 8 here\)"):
        samples.read([run], config(method__rank=8), SHARED, False)
    with pytest.raises(UserError, match="was computed on CPUs, and says nothing of GPUs"):
        samples.read([run], config(), SHARED, True)


def test_what_is_measured_without_runs() -> None:
    assert [*measure.plan(1000, 32, ["jacobian", "each"])] == [
        *((8, 32, "jacobian"), (8, 16, "jacobian"), (64, 32, "jacobian"), (64, 16, "jacobian")),
        *((512, 32, "jacobian"), (512, 16, "jacobian"), (8, 32, "each"), (64, 32, "each")),
    ]
    assert [run.clients for run in measure.plan(10, 1, ["each"])] == [3, 8, 10], "a batch of one has no half"
    assert [run.clients for run in measure.plan(1, 1, ["each"])] == [1]


def test_lines_for_extra_p() -> None:
    lines = [json.loads(line) for line in outcome.extrap([sample(2, rounds=3)])]
    assert len(lines) == 3 * (1 + len(COLUMNS))
    assert lines[0] == {
        "params": {"ranks": 2, "clients": 64, "batch": 32},
        "callpath": "round",
        "metric": "time",
        "value": lines[0]["value"],
    }
    assert {line["callpath"] for line in lines} == {"round", *(f"round->{phase}" for phase in COLUMNS)}


def test_points_of_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome, "NODES", (1, 4))
    monkeypatch.setattr(outcome, "CLIENTS_OF_ROUND", (1000, 5000))
    grid = outcome.grid(point.model(various()), config(), Target(), SHARED, lambda text: None)
    assert [(each["nodes"], each["ranks"], each["clients"]) for each in grid["points"]] == [
        (nodes, nodes, clients) for clients in (1000, 5000) for nodes in (1, 4)
    ]
    assert [each["measured"] is not None for each in grid["points"]] == [True, False, False, False], "one rank, 1,000 clients"
    small = point.model([sample(cohort__size=size) for size in (8, 64)])
    assert list(outcome.grid(small, config(), Target(), SHARED, lambda text: None)["left_out"]) == [1000, 5000]
