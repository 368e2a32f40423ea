"""What every aggregator promises; a new file in flora_hpc/aggregators is tested the day it appears."""

import copy
from pathlib import Path

import pytest
import torch

from flora_hpc import checkpoint, plugins
from flora_hpc.aggregators._aggregator import Aggregator
from flora_hpc.checkpoint import Checkpoint

ADAPTER = torch.tensor([1.0, -2.0, 0.5, 0.0])
UPDATE = torch.tensor([0.25, 1.0, -0.5, 2.0])


@pytest.fixture(params=plugins.members("aggregators"))
def aggregator(request: pytest.FixtureRequest) -> Aggregator:
    module = plugins.member("aggregators", request.param)
    return module.build(module.Options(name=request.param))


def same(actual: object, expected: object) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_a_zero_update_leaves_the_adapter(aggregator: Aggregator) -> None:
    adapter, _ = aggregator.apply(ADAPTER, torch.zeros(4), aggregator.init(ADAPTER))
    same(adapter, ADAPTER)


def test_an_update_changes_the_adapter_and_keeps_its_form(aggregator: Aggregator) -> None:
    adapter, _ = aggregator.apply(ADAPTER, UPDATE, aggregator.init(ADAPTER))
    assert not torch.equal(adapter, ADAPTER)
    assert (adapter.shape, adapter.dtype) == (ADAPTER.shape, ADAPTER.dtype)


def test_what_goes_in_is_not_changed(aggregator: Aggregator) -> None:
    """Also in a second round, when the state is no longer the first one."""
    adapter, update, state = ADAPTER.clone(), UPDATE.clone(), aggregator.init(ADAPTER)
    for _ in range(2):
        before = copy.deepcopy((adapter, update, state))
        after = aggregator.apply(adapter, update, state)
        same((adapter, update, state), before)
        adapter, state = after


def test_the_same_values_give_the_same_bits(aggregator: Aggregator) -> None:
    """Every rank applies the rule itself; nothing is sent."""

    def two_rounds() -> tuple[torch.Tensor, object]:
        adapter, state = ADAPTER, aggregator.init(ADAPTER)
        for _ in range(2):
            adapter, state = aggregator.apply(adapter, UPDATE, state)
        return adapter, state

    same(two_rounds(), two_rounds())


def test_a_run_that_goes_on_gives_the_same_bits(aggregator: Aggregator, tmp_path: Path) -> None:
    """Adapter and state survive a checkpoint, those of the start and those of a round."""
    adapter, state = ADAPTER, aggregator.init(ADAPTER)
    for number in range(2):
        checkpoint.write(tmp_path, Checkpoint(number, adapter, state), "run")
        read = checkpoint.read(checkpoint.path(tmp_path, number).read_bytes())
        assert type(read.server) is type(state)
        same(aggregator.apply(read.adapter, UPDATE, read.server), aggregator.apply(adapter, UPDATE, state))
        adapter, state = aggregator.apply(adapter, UPDATE, state)


@pytest.mark.parametrize("name", plugins.members("aggregators"))
def test_it_says_what_it_does(name: str) -> None:
    module = plugins.member("aggregators", name)
    assert issubclass(module.Options, plugins.BaseOptions)
    assert (module.__doc__ or "").strip()


def test_fedavg_adds_the_mean_update() -> None:
    module = plugins.member("aggregators", "fedavg")
    rule = module.build(module.Options(name="fedavg"))
    adapter, state = rule.apply(ADAPTER, UPDATE, rule.init(ADAPTER))
    same(adapter, torch.tensor([1.25, -1.0, 0.0, 2.0]))
    same(rule.apply(adapter, UPDATE, state)[0], torch.tensor([1.5, 0.0, -0.5, 4.0]))
