"""Bytes that cross the network and memories of clients, as `plan` forecasts them and as a run has them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flora_hpc
from flora_hpc.comm import devices
from flora_hpc.errors import UserError
from flora_hpc.forecast import Plan
from flora_hpc.records import hdf5file
from tests.conftest import ROOT, refusal

QUICKSTART = ROOT / "configs" / "quickstart.yaml"
NUMBERS = 4096  # that flora trains in the quickstart
FEW = ["-s", "rounds=1", "-s", "cohort.size=2", "-s", "client.loss=classification"]


def plan(ranks: int = 1, **overrides: Any) -> Plan:
    return flora_hpc.plan(QUICKSTART, ranks=ranks, client__loss="classification", **overrides)


@pytest.mark.parametrize(
    ("algorithm", "up", "down", "sums"),
    [
        ("fedavg", 4 * NUMBERS, 4 * NUMBERS, [NUMBERS]),
        ("scaffold", 8 * NUMBERS, 8 * NUMBERS, [NUMBERS, NUMBERS]),
        ("fednova", 4 * NUMBERS + 4, 4 * NUMBERS, [NUMBERS, 1]),
        ("fedsa_lora", 2 * NUMBERS, 2 * NUMBERS, [NUMBERS // 2]),
        ("top_k", 8 * 41, 4 * NUMBERS, [NUMBERS]),
    ],
)
def test_a_plan_has_the_bytes_that_a_run_writes_down(
    algorithm: str, up: int, down: int, sums: list[int], tmp_path: Path, invoke: Callable[..., str]
) -> None:
    """41 of 4,096 numbers are a hundredth, each with its place."""
    planned = plan(algorithm=algorithm, cohort={"size": 2})
    assert planned.client_uplink_bytes.tolist() == [up, up]
    assert planned.client_downlink_bytes.tolist() == [down, down]
    assert (planned.uplink_bytes, planned.downlink_bytes) == (2 * up, 2 * down)
    assert planned.allreduce_bytes == 8 * (sum(2 * width + 1 for width in sums) + 1)
    invoke("run", QUICKSTART, *FEW, "-s", f"algorithm={algorithm}", "--out", tmp_path / "run")
    clients = hdf5file.read(tmp_path / "run")[1]["clients"]
    assert clients["uplink_bytes"].tolist() == [up, up]
    assert clients["downlink_bytes"].tolist() == [down, down]


def test_a_transform_that_looks_at_numbers_is_applied_to_zeros(tmp_path: Path) -> None:
    (tmp_path / "my_code.py").write_text(
        "import torch\n"
        "from flora_hpc.parts import Algorithm, BaseOptions, Transform\n"
        "FAMILY = 'algorithms'\n"
        "class Options(BaseOptions): ...\n"
        "def build(options, setting):\n"
        "    def apply(rows, memory):\n"
        "        return rows, {}, torch.tensor([8 + 4 * len(row.nonzero()) for row in rows])\n"
        "    return Algorithm(transform=Transform(apply))\n"
    )
    planned = plan(algorithm="my_code", cohort={"size": 2}, plugin_files=tmp_path / "my_code.py")
    assert planned.client_uplink_bytes.tolist() == [8, 8]


@pytest.mark.parametrize(
    ("overrides", "row"),
    [
        ({"algorithm": "scaffold"}, {"control": 4 * NUMBERS}),
        ({"algorithm": "ditto"}, {"personal": 4 * NUMBERS}),
        ({"algorithm": "fedsa_lora", "transform": "top_k"}, {"private": 2 * NUMBERS, "error": 2 * NUMBERS}),
        ({"client__optimizer_state": "keep"}, {"optimizer": 8 * NUMBERS + 4}),
        ({"algorithm": "feddyn", "client__optimizer_state": "keep"}, {"h": 4 * NUMBERS, "optimizer": 8 * NUMBERS + 4}),
    ],
)
def test_what_a_client_remembers(overrides: dict[str, Any], row: dict[str, int]) -> None:
    remembered = plan(**overrides).remembered
    assert remembered is not None
    assert remembered.row_bytes == row
    assert remembered.total_bytes == 10 * sum(row.values())


def test_memories_grow_with_the_clients_that_have_trained() -> None:
    """A million clients, of which two a round train for three rounds; on one rank, no row crosses ranks."""
    many = {"partition": {"name": "iid", "num_clients": 10**6, "examples_per_client": 8}, "cohort": {"size": 2}}
    planned = plan(algorithm="scaffold", rounds=3, **many)
    remembered, row = planned.remembered, 4 * NUMBERS
    assert remembered is not None
    assert (remembered.most_clients, remembered.total_bytes, remembered.spilled_bytes) == (6, 6 * row, 0)
    assert planned.memory_bytes["memories of clients"] == remembered.memory_bytes == (6 + 5 * 2) * row
    assert remembered.exchanged_bytes == 0
    assert plan(rounds=3, **many).remembered is None


def test_rows_of_clients_that_train_away_from_home_cross_ranks() -> None:
    """Static: clients go to ranks by their cost; a row is fetched by its client's number and comes back with it."""
    planned = plan(2, algorithm="scaffold", cohort__assignment="static")
    away = sum(client % 2 != rank for rank, groups in enumerate(planned.groups) for group in groups for client in group)
    assert planned.remembered is not None
    assert planned.remembered.exchanged_bytes == away * (8 + 2 * (8 + 4 * NUMBERS)) > 0
    dynamic = plan(2, algorithm="scaffold", cohort__assignment="dynamic").remembered
    assert dynamic is not None
    assert dynamic.exchanged_bytes >= 10 * (16 + 4 * NUMBERS), "each rank borrows the clients of the other one"


def test_rows_beyond_the_memory_of_a_rank_lie_in_a_file(monkeypatch: pytest.MonkeyPatch, invoke: Callable[..., str]) -> None:
    """Room for five rows, and the peak of a round of one client takes five more."""
    row = 4 * NUMBERS
    monkeypatch.setattr(devices, "memory_per_core", lambda: 2 * 5 * row)
    remembered = plan(algorithm="scaffold", cohort={"size": 1}, rounds=50).remembered
    assert remembered is not None
    assert (remembered.total_bytes, remembered.memory_bytes, remembered.spilled_bytes) == (10 * row, 10 * row, 5 * row)
    said = " ".join(invoke("plan", QUICKSTART, "-s", "algorithm=scaffold", "-s", "cohort.size=1").replace("│", " ").split())
    assert "81.9 kB of a rank's memories in a temporary file of its node (TMPDIR)" in said
    assert "16.4 kB (control) of each client that has trained, so up to 16.4 kB more with each round; 163.8 kB after 20" in said


REFUSED = {
    "algorithm": (
        {"algorithm": "scaffold"},
        "algorithm: scaffold: a rank borrows and gives back the memories of 10 clients in a round, "
        "5 times 39.5 MB each and 2.0 GB in all, but has room for 500.0 MB; "
        "take more ranks or a smaller cohort.size, or take an algorithm without memories",
    ),
    "optimizers": (
        {"client__optimizer_state": "keep"},
        "client.optimizer_state: keep: a rank borrows and gives back the memories of 10 clients in a round, "
        "5 times 79.0 MB each and 4.0 GB in all, but has room for 500.0 MB; "
        "take more ranks or a smaller cohort.size, or set client.optimizer_state: reset",
    ),
    "dynamic": (
        {"algorithm": "scaffold", "cohort__assignment": "dynamic", "ranks": 10},
        "algorithm: scaffold: a rank borrows and gives back the memories of 10 clients in a round, "
        "5 times 39.5 MB each and 2.0 GB in all, but has room for 500.0 MB; "
        "set cohort.assignment: balanced, or take an algorithm without memories",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_memories_that_do_not_fit_are_refused(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "memory_per_core", lambda: 10**9)
    overrides, sentence = REFUSED[what]
    with pytest.raises(UserError) as error:
        plan(method={"name": "fedfft"}, **overrides)
    assert str(error.value) == sentence
    plan(**overrides)  # with flora
    plan(method={"name": "fedfft"}, **{"ranks": 10} | overrides | {"cohort__assignment": "balanced"})


def test_a_run_refuses_what_its_plan_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "memory_per_core", lambda: 10**9)
    words = [QUICKSTART, "-s", "method.name=fedfft", "-s", "algorithm=scaffold"]
    sentence = refusal("plan", *words)
    assert refusal("run", *words, "--out", tmp_path / "run") == sentence == REFUSED["algorithm"][1]
    assert not (tmp_path / "run").exists()
