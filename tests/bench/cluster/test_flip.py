import numpy as np
import pytest

from flora_hpc.bench.cluster.flip import VARIABLE, flipped
from flora_hpc.comm.backends.serial import Serial
from flora_hpc.errors import UserError


@pytest.mark.parametrize("text", ["1", "1:sent", "1:received", "1:sent:1"])
def test_one_bit_of_one_rank(text: str) -> None:
    numbers = np.arange(4)
    flipped(Serial(), 1, {VARIABLE: text}).allreduce(numbers)
    assert numbers.tolist() == [1 << 20, 1, 2, 3]


@pytest.mark.parametrize(("rank", "text"), [(0, "1"), (1, ""), (1, "1:sent:2")])
def test_other_ranks_and_small_parts_stay_as_they_are(rank: int, text: str) -> None:
    comm = Serial()
    assert flipped(comm, rank, {VARIABLE: text}) is comm


@pytest.mark.parametrize("text", ["x", "1:lost", "1:sent:x"])
def test_wrong_values(text: str) -> None:
    with pytest.raises(UserError, match=f"{VARIABLE} is '{text}'; give a rank"):
        flipped(Serial(), 0, {VARIABLE: text})
