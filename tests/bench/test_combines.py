"""`flora-hpc bench combines` plays the combine parts of algorithms on random updates."""

import pytest
import torch

from flora_hpc.bench import combines
from flora_hpc.comm.backends.serial import Serial
from flora_hpc.comm.meter import Meter
from flora_hpc.errors import UserError

TASK = combines.Task(clients=70, layers=2, width=4, rank=1, repeats=2)  # two groups


def direction(name: str) -> torch.Tensor:
    method = combines.adapters(TASK)
    return combines.play(Meter(Serial()), combines.federation(name, method, TASK), method, TASK)


def test_a_mean_and_a_median_of_the_same_updates() -> None:
    updates = torch.cat([rows for _, rows in combines.updates_of(TASK, 16, 0, 1)])
    assert updates.shape == (70, 16)
    torch.testing.assert_close(direction("fedavg"), updates.mean(0))
    middle = updates.sort(0).values[34:36].mean(0)
    torch.testing.assert_close(direction("median"), middle)


def test_the_clients_of_ranks_are_those_of_one_rank() -> None:
    own = [client for rank in (0, 1) for clients, _ in combines.updates_of(TASK, 16, rank, 2) for client in clients.tolist()]
    assert sorted(own) == list(range(70))


def test_a_row_for_each_algorithm() -> None:
    said: list[str] = []
    result = combines.measure(Serial(), ["flexlora", "flora_stacking", "hetlora", "fednova", "fedsvd"], TASK, said.append)
    assert (result["clients"], result["num_params"], result["world_size"]) == (70, 16, 1)
    assert [len(row["repeat_seconds"]) for row in result["algorithms"].values()] == [2] * 5
    assert said[0] == "flexlora, 70 clients, 2 times"


def test_algorithms_without_a_combine_part_are_refused() -> None:
    with pytest.raises(UserError, match="--algorithms: fedprox has no combine part of its own; take fedavg instead"):
        combines.measure(Serial(), ["fedprox"], TASK, print)
