"""Updates of all clients by blocks of columns: the same bits however clients and columns are dealt to ranks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.filesize import decimal

import flora_hpc
from flora_hpc import experiment, plugins, rows
from flora_hpc.algorithms._algorithm import CombineRows
from flora_hpc.attackers import Attackers, draw
from flora_hpc.comm import devices
from flora_hpc.comm.communicator import AgreedError, Communicator
from flora_hpc.comm.meter import Meter
from flora_hpc.data.images import Ints
from flora_hpc.errors import UserError
from flora_hpc.records import hdf5file
from tests.conftest import ROOT
from tests.pure_rounds import build, part
from tests.threads import on_ranks

QUICKSTART = ROOT / "configs" / "quickstart.yaml"
CLIENTS = np.array([4, 0, 7, 2**40, 1, 3, 9, 12, 5, 6, 11])
WIDTHS = [1, 5, 13, 200]  # of updates, in chunks of 3 columns and at most 8 blocks


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "CHUNK", 3)
    monkeypatch.setattr(rows, "MAX_BLOCKS", 8)


def updates_of(width: int) -> torch.Tensor:
    """An update of each client, in the order of CLIENTS; the third one is far from the others."""
    numbers = torch.from_numpy(np.random.default_rng(width).normal(0, 1e-3, (len(CLIENTS), width)).astype(np.float32))
    numbers[2] += 3
    return numbers


def combined(comm: Communicator, rule: CombineRows, width: int, takers: Ints) -> bytes:
    """The direction where rank `takers[i]` trains the client CLIENTS[i], in groups of two."""
    updates, own = rows.Updates(width), np.flatnonzero(takers == comm.rank)
    for first in range(0, len(own), 2):
        group = own[first : first + 2]
        assert updates.add(CLIENTS[group], updates_of(width)[group]).all()
    return rows.combine(Meter(comm), updates, rule).numpy().tobytes()


def alone(rule: CombineRows, width: int) -> bytes:
    """The direction on one rank that trains the clients in the order of their numbers."""
    updates, order = rows.Updates(width), np.argsort(CLIENTS)
    updates.add(CLIENTS[order], updates_of(width)[order])
    (direction,) = on_ranks(1, lambda comm: rows.combine(Meter(comm), updates, rule).numpy().tobytes())
    return direction


@pytest.mark.parametrize(
    "name", ["median", "trimmed_mean", "krum", "multi_krum", "bulyan", "geometric_median", "centered_clipping"]
)
@pytest.mark.parametrize("mix", ["none", "nnm"])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5])
def test_the_bits_do_not_depend_on_who_trains_whom(name: str, mix: str, num_ranks: int) -> None:
    rule = part(build(name, mix=mix).combine, CombineRows)
    for width in WIDTHS:
        takers = np.random.default_rng([width, num_ranks]).integers(0, num_ranks, len(CLIENTS))
        takers[takers == num_ranks - 1] = 0 if width == 5 and num_ranks > 1 else num_ranks - 1  # a rank that trains nobody
        results = on_ranks(num_ranks, lambda comm: combined(comm, rule, width, takers))  # noqa: B023
        assert set(results) == {alone(rule, width)}, width


def server_trusts(comm: Communicator, width: int, takers: Ints, attackers: Attackers | None = None) -> bytes:
    """The direction of FLTrust, where rank 0 also has the server's update: twice that of client 9, shifted a little."""
    updates = rows.Updates(width)
    own = np.flatnonzero(takers == comm.rank)
    updates.add(CLIENTS[own] % 100, updates_of(width)[own])
    if comm.rank == 0:
        updates.add(np.array([rows.SERVER]), 2 * updates_of(width)[6:7] + 1e-4)
    rule = part(build("fltrust").combine, CombineRows)
    return rows.combine(Meter(comm), updates, rule, attackers).numpy().tobytes()


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_servers_update_is_the_last_row_on_any_number_of_ranks(num_ranks: int, width: int) -> None:
    """Also where attackers know the honest updates: the server's is none of them."""
    takers = np.random.default_rng([width, num_ranks]).integers(0, num_ranks, len(CLIENTS))
    module = plugins.member("attacks", "ipm")
    for attackers in (None, draw(module.Options(name="ipm"), 0, 100)):
        directions = on_ranks(num_ranks, lambda comm: server_trusts(comm, width, takers, attackers))  # noqa: B023
        clients, order = CLIENTS % 100, np.argsort(CLIENTS % 100)
        numbers = updates_of(width)[torch.from_numpy(order)]
        if attackers is not None:
            attackers.against(clients[order], numbers)
        numbers = numbers.double()
        own = 2 * updates_of(width)[6].double() + 1e-4
        trust = (numbers @ own / (numbers.norm(dim=1) * own.norm())).clamp(min=0)
        expected = (trust / numbers.norm(dim=1)) @ numbers * own.norm() / trust.sum()
        assert len(set(directions)) == 1
        np.testing.assert_allclose(np.frombuffer(directions[0], np.float32), expected.numpy(), rtol=1e-4, atol=1e-9)


def test_a_servers_update_that_is_not_finite_ends_the_run() -> None:
    updates = rows.Updates(2)
    updates.add(np.array([5]), torch.ones(1, 2))
    updates.add(np.array([rows.SERVER]), torch.full((1, 2), torch.inf))
    with pytest.raises(AgreedError, match=r"the server's own update was not finite; lower client.lr"):
        on_ranks(1, lambda comm: rows.combine(Meter(comm), updates, part(build("fltrust").combine, CombineRows)))


@pytest.mark.parametrize("width", WIDTHS)
def test_a_rule_by_columns_gives_what_it_gives_of_all_columns_at_once(width: int) -> None:
    """A median of columns does not depend on how they are dealt out."""
    rule = part(build("median").combine, CombineRows)
    expected = np.median(updates_of(width).numpy().astype(np.float64), axis=0).astype(np.float32)
    assert alone(rule, width) == expected.tobytes()


@pytest.mark.parametrize("width", WIDTHS)
def test_distances_are_those_of_all_columns(width: int) -> None:
    points = torch.cat([updates_of(width), torch.zeros(1, width)]).double()
    table = rows.symmetric(rows.squares(updates_of(width)), len(points))
    torch.testing.assert_close(table, ((points[:, None] - points) ** 2).sum(2), rtol=1e-14, atol=0)


@pytest.mark.parametrize(("width", "expected"), [(0, []), (1, [1]), (3, [3]), (4, [3, 1]), (24, [3] * 8), (25, [6, 6, 6, 6, 1])])
def test_blocks_are_whole_chunks_and_not_many(width: int, expected: list[int]) -> None:
    blocks = rows.blocks(width)
    assert [block.stop - block.start for block in blocks] == expected
    assert [column for block in blocks for column in range(block.start, block.stop)] == list(range(width))


def test_rows_that_are_not_finite_are_left_out() -> None:
    updates, numbers = rows.Updates(4), torch.ones(3, 4)
    numbers[0, 2], numbers[1, 0] = torch.nan, -torch.inf
    assert updates.add(np.array([5, 6, 7]), numbers).tolist() == [False, False, True]
    assert [clients.tolist() for clients in updates.clients] == [[7]]
    (direction,) = on_ranks(1, lambda comm: rows.combine(Meter(comm), updates, part(build("median").combine, CombineRows)))
    assert direction.tolist() == [1.0] * 4


def test_the_bits_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """For so many clients and columns that PyTorch would use several."""
    monkeypatch.undo()
    numbers = torch.from_numpy(np.random.default_rng(0).normal(0, 1e-3, (60, 3000)).astype(np.float32))
    updates, before = rows.Updates(3000), torch.get_num_threads()
    updates.add(np.arange(60), numbers)
    rule = part(build("bulyan", mix="nnm").combine, CombineRows)
    results = set()
    try:
        for num_threads in (1, 2, 4):
            torch.set_num_threads(num_threads)
            results |= {on_ranks(1, lambda comm: rows.combine(Meter(comm), updates, rule).numpy().tobytes())[0]}
    finally:
        torch.set_num_threads(before)
    assert len(results) == 1


# --- in runs


def test_a_median_beside_the_server_of_another_algorithm(tmp_path: Path, invoke: Callable[..., str]) -> None:
    invoke("run", QUICKSTART, "-s", "rounds=1", "-s", "combine=median", "-s", "server=fedadam", "--out", tmp_path / "run")
    attributes, tables = hdf5file.read(tmp_path / "run")
    assert attributes["algorithm"] == "fedavg, combine of median, server of fedadam"
    assert set(tables["clients"]["weight"].tolist()) == {1}


def test_a_run_whose_updates_are_all_rejected_ends_with_a_sentence(tmp_path: Path) -> None:
    """Two steps of 1e38 make every update infinite or NaN."""
    client = {"optimizer": "sgd", "lr": 1e38, "epochs": 2}
    with pytest.raises(UserError, match="every client's update was rejected"):
        flora_hpc.run(QUICKSTART, out=tmp_path / "run", rounds=1, algorithm="krum", client=client)
    rounds = hdf5file.read(tmp_path / "run")[1]["rounds"]
    assert rounds["num_rejected"][1] == rounds["num_clients"][1] > 0


def test_updates_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "room", lambda device, sharing=1: devices.Room(100_000, gpu=False))
    with pytest.raises(UserError) as error:
        flora_hpc.plan(QUICKSTART, ranks=2, algorithm="median", cohort={"size": 10})
    text = str(error.value)
    assert (
        "algorithm: median: its rule compares all updates, so that a rank has those of its 5 clients of a round in memory" in text
    )
    assert text.endswith("take more ranks or a smaller cohort.size, or take a combine part of sums")


def test_a_plan_says_what_updates_take() -> None:
    planned = flora_hpc.plan(QUICKSTART, ranks=2, algorithm="median")
    width, num_clients = planned.num_params, len(planned.clients)
    assert 4 * width * num_clients // 2 < planned.memory_bytes["updates of clients"] < 12 * width * num_clients
    assert planned.allreduce_bytes == 16, "only numbers of clients and the sum of weights are added up"
    assert "updates of clients" not in flora_hpc.plan(QUICKSTART, ranks=2).memory_bytes


@pytest.mark.parametrize(("name", "num_tables"), [("median", 0), ("krum", 2)])
def test_a_plan_says_what_ranks_send_each_other(
    name: str, num_tables: int, monkeypatch: pytest.MonkeyPatch, invoke: Callable[..., str]
) -> None:
    """4,096 numbers in four blocks for two ranks with five clients each: a rank sends half of its rows, and receives as much."""
    monkeypatch.undo()
    planned = flora_hpc.plan(QUICKSTART, ranks=2, algorithm=name)
    half, times = 4 * 5 * 2048, 2 if num_tables else 1
    table = 8 * 55  # distances between ten updates and zero
    assert planned.exchange == (times, 4, 4 * 10 * 1024, times * half, times * half, num_tables * table)
    text = " ".join(invoke("plan", QUICKSTART, "--ranks", 2, "-s", f"algorithm={name}").replace("│", " ").split())
    assert f"a rank sends up to {decimal(times * half)} to the others and receives up to" in text
    assert flora_hpc.plan(QUICKSTART, ranks=2).exchange is flora_hpc.plan(QUICKSTART, algorithm=name).exchange is None


def test_images_of_the_server_belong_to_no_client() -> None:
    setup = experiment.build(
        flora_hpc.load_config(QUICKSTART, algorithm={"name": "fltrust", "server_images": 30}),
        torch.device("meta"),
        devices.Room(10**9, gpu=False),
    ).setup
    images, _ = setup.holdings.examples_of(np.arange(10))
    assert len(setup.server) == 30
    assert not set(setup.server.tolist()) & set(images.tolist())
    assert len(images) + 30 == 1438
    planned = flora_hpc.plan(QUICKSTART, algorithm="fltrust")
    assert planned.num_server_images == 1438 - planned.num_examples.sum() == 100


def test_what_is_not_finite_is_rejected_and_the_others_are_combined(tmp_path: Path) -> None:
    """Attackers send infinity: each is rejected, and the run is that of the honest clients."""
    flora_hpc.run(QUICKSTART, out=tmp_path / "run", rounds=2, algorithm="krum", attack={"name": "scaled", "scale": 1e300})
    tables = hdf5file.read(tmp_path / "run")[1]
    clients = tables["clients"]
    assert (clients["weight"] == 1 - clients["attacks"]).all()
    assert tables["rounds"]["num_rejected"].tolist() == tables["rounds"]["num_attackers"].tolist() == [0, 2, 2]
    assert tables["rounds"]["test_accuracy"][2] != tables["rounds"]["test_accuracy"][0]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"algorithm": "scaffold", "combine": "median"},
            "its rule compares updates, but the local part also sends control, of which",
        ),
        ({"algorithm": "krum", "cohort": {"size": 2}}, "and krum needs 2 f + 3 = 3 clients; lower it, or raise cohort.size"),
        ({"combine": {"name": "bulyan", "fraction": 0.2}}, "combine.fraction: 0.2 of 10 clients in a round are f = 2 attackers"),
        ({"algorithm": {"name": "multi_krum", "num_chosen": 11}}, "11 updates cannot be chosen of 10 in a round"),
        ({"algorithm": "median", "method": {"name": "feddylora"}}, "the combine part would compare the padding"),
        ({"algorithm": {"name": "fltrust", "server_images": 1438}}, "1,438 of 1,438 training images for the server leave none"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError) as error:
        flora_hpc.plan(QUICKSTART, **options)
    assert reason in str(error.value)
