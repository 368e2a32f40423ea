from typing import Any

import pytest
import torch
from pydantic import ValidationError

from flora_hpc.bench import plain
from flora_hpc.config import ClientConfig
from flora_hpc.optimizers import OPTIMIZERS, first

KINDS = [{"optimizer": "adam"}, {"optimizer": "adamw"}, {"optimizer": "sgd"}, {"optimizer": "sgd", "momentum": 0.9}]
STEPS = [7, 4, 1]  # of three clients


def settings(kind: dict[str, Any]) -> ClientConfig:
    return ClientConfig(lr=0.03, weight_decay=0.2, betas=(0.9, 0.98), **kind)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_each_client_moves_as_with_torch_whenever_the_others_leave(kind: dict[str, Any]) -> None:
    config, generator = settings(kind), torch.Generator().manual_seed(0)
    start, gradients = (torch.randn(*shape, 5, generator=generator, dtype=torch.float64) for shape in [(3,), (7, 3)])
    params = start.clone()
    optimizer = OPTIMIZERS[config.optimizer]
    state = optimizer.init(params, config)
    for step in range(7):
        n = sum(steps > step for steps in STEPS)
        optimizer.step(params[:n], gradients[step, :n].clone(), first(state, n), config)
    for k, steps in enumerate(STEPS):
        alone = torch.nn.Parameter(start[k].clone())
        torchs = plain.make_optimizer([alone], config)
        for step in range(steps):
            alone.grad = gradients[step, k].clone()
            torchs.step()
        torch.testing.assert_close(params[k], alone.detach(), rtol=1e-12, atol=1e-14)


def test_plain_descent_remembers_nothing() -> None:
    assert OPTIMIZERS["sgd"].init(torch.zeros(2, 3), ClientConfig(optimizer="sgd")) == ()


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_momentum_is_refused_where_betas_take_its_place(name: str) -> None:
    with pytest.raises(ValidationError, match=f"0.9 is for sgd, and {name} has betas; set client.optimizer: sgd"):
        ClientConfig(optimizer=name, momentum=0.9)
    ClientConfig(optimizer=name, momentum=0.0)  # as a resolved configuration has it
