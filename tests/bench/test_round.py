import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from flora_hpc import configfile, firststep, trainer
from flora_hpc.bench import bare
from flora_hpc.bench import round as part
from flora_hpc.cli import app
from flora_hpc.comm.backends.serial import Serial
from flora_hpc.comm.communicator import Communicator
from flora_hpc.comm.launch import Launch
from flora_hpc.config import Config
from flora_hpc.errors import UserError
from flora_hpc.records.schema import ROUNDS, TOPOLOGY, Rows
from flora_hpc.records.views import PHASES
from tests.contracts.known_helpers import rows

SMALL = ["-s", "partition.examples_per_client=4", "--clients", "5", "--rounds", "3", "--repeats", "1"]


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", "round", *arguments], env={"COLUMNS": "80"})


def refusal(*arguments: str) -> str:
    error = bench(*arguments).exception
    assert isinstance(error, UserError)
    return str(error)


def three_rounds() -> Rows:
    """Medians: 2 s of training, 0.5 s of batches, 0.25 s waiting, evaluation 1 s, and 0.25 s between phases."""
    return rows(
        ROUNDS,
        {"num_clients": 6, "batch_seconds": 0.5, "train_seconds": 1, "wait_seconds": 0.25, "eval_seconds": 1, "round_seconds": 3},
        {"num_clients": 6, "batch_seconds": 0.25, "train_seconds": 2, "wait_seconds": 0, "eval_seconds": 1, "round_seconds": 3.5},
        {"num_clients": 6, "batch_seconds": 0.5, "train_seconds": 5, "wait_seconds": 0.5, "eval_seconds": 1, "round_seconds": 8},
    )


def test_the_split_is_made_of_medians() -> None:
    found = part.shares_of(three_rounds())
    expected = dict.fromkeys(PHASES, 0.0) | {"batch": 0.5, "train": 2.0, "wait": 0.25, "eval": 1.0, "rest": 0.25}
    assert found.seconds == expected
    assert found.shares == {name: value / 4 for name, value in expected.items()}
    assert found.framework_share == (0.5 + 0.25) / 4, "batches and the rest; not training, waiting and evaluation"
    assert (found.num_clients, found.num_rounds, found.round_seconds) == (6, 3, 3.5)
    assert found.round_seconds_quartiles == (3.25, 5.75)
    assert found.client_updates_per_second == 6 / 3.5


def test_a_bare_loop_is_compared_by_throughput() -> None:
    found = part.against_bare(part.shares_of(three_rounds()), [3.0, 2.0, 100.0])
    assert found == {"round_seconds": 3.0, "client_updates_per_second": 2.0, "ratio": 6 / 3.5 / 2.0}


def test_runs_populations_and_a_bare_loop_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = bench(*SMALL, "--registered", "7,5000", "--bare", "--json")
    assert result.exit_code == 0, result.exception
    found = json.loads(result.stdout)
    assert (found["num_clients"], found["num_rounds"], found["repeats"], found["world_size"]) == (5, 2, 1, 1)
    assert found["seconds"].keys() == found["shares"].keys() == {*PHASES, "rest"}
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert found["shares"]["train"] == pytest.approx(found["seconds"]["train"] / sum(found["seconds"].values()))
    shares = (found["shares"][name] for name in ("batch", "sum", "server", "log", "rest"))
    assert found["framework_share"] == pytest.approx(sum(shares))
    assert min(found["seconds"][name] for name in ("batch", "train", "sum", "log")) > 0
    assert found["client_updates_per_second"] == pytest.approx(5 / found["round_seconds"])
    few, many = found["populations"]
    assert (few["registered"], few["round_seconds"], few["ratio"]) == (7, found["round_seconds"], 1)
    assert few["repeat_round_seconds"] == [few["round_seconds"]]
    assert (many["registered"], many["ratio"]) == (5000, many["round_seconds"] / few["round_seconds"])
    loop = found["bare"]
    assert loop["ratio"] == pytest.approx(loop["round_seconds"] / found["round_seconds"])
    assert {"device", "processor", "num_threads", "versions", "model", "group_size", "backend"} <= found.keys()
    assert [*tmp_path.iterdir()] == []
    told = result.stderr.splitlines()
    assert [line.split("(")[0].strip() for line in told] == [
        "run of 3 rounds, 7 clients registered",
        "run of 3 rounds, 5,000 clients registered",
        "bare loop",
    ]


def test_populations_take_turns_to_and_fro(monkeypatch: pytest.MonkeyPatch) -> None:
    played = []

    def play(config: Config, comm: Communicator, me: Launch) -> tuple[dict[str, Any], Rows, Rows]:
        played.append(config.partition.num_clients)  # type: ignore[attr-defined]
        rounds = three_rounds()
        rounds["round_seconds"] = 2.0 if played[-1] == 50 else 3.0
        facts = dict.fromkeys(("dataset", "world_size", "launcher", "backend", "group_size", "num_params"), "made up")
        return facts, rounds, rows(TOPOLOGY, {"device": "cpu", "num_threads": 1})

    monkeypatch.setattr(part, "play", play)
    changes = (["cohort.size=6", f"partition.num_clients={number}"] for number in (50, 1000))
    found = part.measure([configfile.load(part.DEFAULT, change)[0] for change in changes], Serial(), Launch(), 2, False)
    assert played == [50, 1000, 1000, 50]
    assert found is not None
    assert found["num_rounds"] == 6
    assert found["populations"] == [
        {"registered": 50, "round_seconds": 2, "repeat_round_seconds": [2, 2], "ratio": 1},
        {"registered": 1000, "round_seconds": 3, "repeat_round_seconds": [3, 3], "ratio": 1.5},
    ]


def test_the_table_for_people() -> None:
    result = bench(*SMALL)
    assert result.exit_code == 0, result.exception
    lines = result.stdout.splitlines()
    assert lines[0] == "flora-tiny, flora, digits, 5 clients a round"
    assert [line.split()[0] for line in lines[4:13]] == [*PHASES, "rest"]
    text = " ".join(result.stdout.split())
    assert "client updates per second, framework share" in text
    assert "medians over 2 rounds of 1 runs on 1 rank, log included" in text
    assert "bare" not in text
    assert "registered" not in text


@pytest.mark.mpi
def test_two_ranks_measure_one_run_and_one_speaks(
    flora: Callable[..., subprocess.CompletedProcess[str]], mpiexec: list[str]
) -> None:
    result = flora("bench", "round", *SMALL, "--json", under=[*mpiexec, "-n", "2"])
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["world_size"], found["backend"], found["num_clients"], found["num_rounds"]) == (2, "mpi", 5, 2)
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert found["seconds"]["comm"] > 0
    assert result.stderr.count("run of 3 rounds") == 1


@pytest.mark.parametrize("method", ["flora", "feddylora", "fedca"])
def test_the_bare_loop_trains_what_a_run_trains(method: str) -> None:
    """Clients of different sizes, whose last batches are short; of feddylora, clients hold different ranks."""
    changes = [f"method.name={method}", "partition.name=quantity", "partition.num_clients=6", "partition.examples_per_client=7"]
    changes += ["cohort.size=6", "client.batch_size=3", "client.epochs=2", "client.group_size=3", "client.lr=0.001"]
    config, _ = configfile.load(part.DEFAULT, changes)
    setup, adapter, groups = bare.build(config, Launch())
    assert [group.num_clients for group in groups] == [3, 3]
    assert not setup.by_jacobian
    first = firststep.make(setup.method, adapter, Serial()) if method == "flora" else None
    clients = part_groups(setup.holdings.sizes(np.arange(6)))
    for group, members in zip(groups, clients, strict=True):
        batches = trainer.make_batches(members, setup.holdings, setup.client, setup.seed, 1, setup.padding_multiple)
        held = setup.method.portions.mask(members) if setup.method.portions else None
        expected = trainer.train(setup.task, trainer.Start(adapter, held), batches, first).updates
        assert expected.abs().max() > 0
        torch.testing.assert_close(bare.train(setup, adapter, group, first) - adapter, expected, rtol=0, atol=0)


def part_groups(sizes: np.ndarray) -> list[np.ndarray]:
    """Six clients in groups of three, largest first, where a last batch costs as much as a whole one of three."""
    by_size = np.lexsort((np.arange(6), -np.ceil(sizes / 3)))
    return [by_size[:3], by_size[3:]]


def test_mistakes() -> None:
    for option in ("--clients", "--repeats"):
        assert bench(option, "0").exit_code == 2
    assert bench("--rounds", "1").exit_code == 2
    assert refusal("--registered", "10,x").startswith("--registered: 'x' is not a whole number of at least 1; give for example")
    assert refusal("--registered", "10,0").startswith("--registered: '0' is not")
    assert "give --clients as well" in refusal("configs/quickstart.yaml", "--registered", "10,100")
    few = ("configs/quickstart.yaml", "--registered", "10,100", "--clients", "5", "-s", "cohort.fraction=null")
    assert "set -s partition.examples_per_client=32" in refusal(*few)
    assert refusal("--registered", "10,10") == "--registered: names 10 twice; name it once"
    assert refusal("--clients", "20", "--registered", "10").startswith("-s cohort.size: 20 clients a round, but only 10 are")
    assert refusal("-s", "rounds=1") == ("rounds: 1 leaves nothing to measure, since the first one warms up; give at least 2")
    assert "there is no such file" in refusal("nowhere.yaml")
    assert refusal("--bare", "-s", "method.name=zeroshot", *SMALL).startswith("--bare: zeroshot trains nothing")
    config, _ = configfile.load(part.DEFAULT)
    with pytest.raises(UserError, match="--bare: is a loop in one process, but mpich started 2; start one"):
        part.check(config, Launch("mpich", 0, 2, 0, 2), with_bare=True)
