"""What every algorithm promises; a new file in flora_hpc/algorithms is tested the day it appears."""

import copy
from pathlib import Path
from types import MappingProxyType, ModuleType

import pytest
import torch

from flora_hpc import checkpoint, plugins
from flora_hpc.algorithms._algorithm import Algorithm, CombineRows, Ended, Local, LocalStep, Now, Server, Setting
from flora_hpc.checkpoint import Checkpoint
from flora_hpc.config import ClientConfig

NAMES = (
    *(f"transformer.resblocks.0.out_proj.lora_{factor}" for factor in "AB"),
    *(f"transformer.resblocks.1.out_proj.private_{factor}" for factor in "AB"),
)
SETTING = Setting(ClientConfig(loss="classification"), NAMES, paired=False, num_registered=10)
ADAPTER = torch.tensor([1.0, -2.0, 0.5, 0.0])
UPDATE = torch.tensor([0.25, 1.0, -0.5, 2.0])
ROWS = torch.tensor([[0.5, -1.0, 0.25, 0.0], [1.0, 2.0, -3.0, 0.5]])


def module(name: str) -> ModuleType:
    return plugins.member("algorithms", name)


def build(name: str) -> Algorithm:
    result: Algorithm = module(name).build(module(name).Options(name=name), SETTING)
    return result


@pytest.fixture(params=plugins.members("algorithms"))
def algorithm(request: pytest.FixtureRequest) -> Algorithm:
    return build(request.param)


@pytest.fixture(params=[name for name in plugins.members("algorithms") if build(name).server is not None])
def server(request: pytest.FixtureRequest) -> Server:
    result = build(request.param).server
    assert result is not None
    return result


def now(server: Server) -> Now:
    return Now(1, 4, 10, 12, {name: torch.full((4,), 0.5) for name in server.takes})


def same(actual: object, expected: object) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_it_defines_a_part_and_names_what_it_sends(algorithm: Algorithm) -> None:
    assert any(part is not None for part in algorithm[:5])
    if algorithm.server is not None:
        assert set(algorithm.server.message(algorithm.server.init(ADAPTER))) == set(algorithm.server.sends)


@pytest.mark.parametrize("name", plugins.members("algorithms"))
def test_it_says_what_it_does(name: str) -> None:
    assert issubclass(module(name).Options, plugins.BaseOptions)
    assert (module(name).__doc__ or "").strip()
    assert all(isinstance(getattr(module(name), text), str) for text in ("FORMULA", "UP", "DOWN", "PAPER"))


def test_an_update_changes_the_adapter_and_keeps_its_form(server: Server) -> None:
    adapter, _ = server.apply(ADAPTER, UPDATE, server.init(ADAPTER), now(server))
    assert not torch.equal(adapter, ADAPTER)
    assert (adapter.shape, adapter.dtype) == (ADAPTER.shape, ADAPTER.dtype)


def test_what_the_server_gets_is_not_changed(server: Server) -> None:
    """Also in a second round, when the state is no longer the first one."""
    adapter, update, state = ADAPTER.clone(), UPDATE.clone(), server.init(ADAPTER)
    for _ in range(2):
        before = copy.deepcopy((adapter, update, state))
        after = server.apply(adapter, update, state, now(server))
        same((adapter, update, state), before)
        adapter, state = after


def test_a_run_that_goes_on_gives_the_same_bits(server: Server, tmp_path: Path) -> None:
    """Adapter and state survive a checkpoint, those of the start and those of a round; the same values give the same bits."""
    adapter, state = ADAPTER, server.init(ADAPTER)
    for number in range(2):
        checkpoint.write(tmp_path, Checkpoint(number, adapter, state), "run")
        read = checkpoint.read(checkpoint.path(tmp_path, number).read_bytes())
        assert type(read.server) is type(state)
        same(server.apply(read.adapter, UPDATE, read.server, now(server)), server.apply(adapter, UPDATE, state, now(server)))
        adapter, state = server.apply(adapter, UPDATE, state, now(server))


def test_a_clients_rows_do_not_depend_on_who_is_beside_it(algorithm: Algorithm) -> None:
    """Gradients, rows and memories of two clients equal those of each client alone."""
    local = algorithm.local or Local()

    def of(rows: slice) -> list[torch.Tensor]:
        params, memory = ROWS[rows], dict.fromkeys(local.memory, 2 * ROWS[rows])
        step = LocalStep(params, ADAPTER, MappingProxyType(dict.fromkeys(local.needs, UPDATE)), memory)
        results = [hook(0.5 * params, step) for hook in (local.gradient, local.personal) if hook is not None]
        if local.end is not None:
            sent, own = local.end(Ended(params - ADAPTER, 3 * params, torch.full((len(params), 1), 3.0), step.message, memory))
            assert tuple(sent) == local.sends
            assert tuple(own) == local.memory
            results += [*sent.values(), *own.values()]
        if local.loss is not None:
            scores = torch.stack([ROWS, 2 * ROWS], 1)[rows]
            labels, counts = torch.tensor([[0, 3], [1, 1]])[rows], torch.tensor([[4.0, 0, 1, 2], [0, 3, 1, 0]])[rows]
            results.append(local.loss(scores, labels, torch.ones_like(labels, dtype=torch.bool), counts))
        if algorithm.transform is not None:
            sent, own, num_bytes = algorithm.transform.apply(params, dict.fromkeys(algorithm.transform.memory, 2 * params))
            results += [sent, *own.values(), num_bytes]
        if algorithm.combine is not None and algorithm.combine.prepare is not None:
            results += algorithm.combine.prepare(params, torch.tensor([[3.0], [7.0]])[rows]).values()
        return results

    for both, first, second in zip(of(slice(2)), of(slice(1)), of(slice(1, 2)), strict=True):
        same(both, torch.cat([first, second]))


@pytest.mark.parametrize("name", [name for name in plugins.members("algorithms") if build(name).transform is not None])
def test_encoded_updates_and_what_is_remembered_add_up(name: str) -> None:
    transform = build(name).transform
    assert transform is not None
    memory = {key: ROWS.flip(0) for key in transform.memory}
    sent, own, num_bytes = transform.apply(ROWS, memory)
    assert tuple(own) == transform.memory
    same(sent + sum(own.values()), ROWS + sum(memory.values()))
    assert num_bytes.shape == (2,)
    assert num_bytes.dtype == torch.int64


@pytest.mark.parametrize("name", [name for name in plugins.members("algorithms") if isinstance(build(name).combine, CombineRows)])
@pytest.mark.parametrize("num_clients", [1, 2, 9])
def test_a_rule_treats_all_columns_alike(name: str, num_clients: int) -> None:
    """Whichever columns a rank computes; and it changes nothing that it gets."""
    rule = build(name).combine
    assert isinstance(rule, CombineRows)
    rows = torch.randn(num_clients, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    points = torch.cat([rows, torch.zeros_like(rows[:1])])
    squares = ((points[:, None] - points) ** 2).sum(2)
    table = squares if rule.measure is None else rule.measure(rows)
    mixtures = rows
    if rule.mix is not None:
        before = table.clone()
        coefficients = rule.mix(table)
        assert coefficients.shape[1] == num_clients
        same(table, before)
        mixtures = coefficients @ rows
    before, direction = mixtures.clone(), rule.columns(mixtures, num_clients)
    same(mixtures, before)
    assert (direction.shape, direction.dtype) == ((12,), torch.float64)
    parts = [rule.columns(part, num_clients) for part in mixtures.split([5, 1, 6], 1)]  # PyTorch sums a last few columns otherwise
    torch.testing.assert_close(torch.cat(parts), direction, rtol=1e-14, atol=1e-15)


def test_fedavg_adds_the_mean_update() -> None:
    rule = build("fedavg").server
    assert rule is not None
    adapter, state = rule.apply(ADAPTER, UPDATE, rule.init(ADAPTER), now(rule))
    same(adapter, torch.tensor([1.25, -1.0, 0.0, 2.0]))
    same(rule.apply(adapter, UPDATE, state, now(rule))[0], torch.tensor([1.5, 0.0, -0.5, 4.0]))
