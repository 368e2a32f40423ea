"""The meter with a fake clock: only the steps of a test take time, in whole seconds."""

from collections.abc import Sequence
from typing import NoReturn

import numpy as np
import pytest

from flora_hpc.comm.communicator import Array, Communicator
from flora_hpc.comm.meter import Meter


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class SlowComm:
    """Rank 1 of 4: a collective takes 2 seconds, and the other ranks arrive at a barrier 5 seconds later."""

    name, rank, size = "slow", 1, 4

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.closed = False

    def _transfer(self) -> None:
        self._clock.now += 2

    def allreduce(self, array: Array) -> None:
        self._transfer()
        array *= 4

    def broadcast(self, array: Array) -> None:
        self._transfer()
        array[...] = 7

    def allgather(self, data: bytes) -> list[bytes]:
        self._transfer()
        return [data] * 4

    def gather(self, data: bytes) -> list[bytes] | None:
        self._transfer()
        return None

    def exchange(self, parts: Sequence[bytes]) -> list[bytes]:
        self._transfer()
        return [parts[1]] * 4

    def barrier(self) -> None:
        self._clock.now += 5

    def split(self, color: int, patient: bool = False) -> Communicator:
        return self

    def abort(self, code: int) -> NoReturn:
        raise SystemExit(code)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(clock: Clock) -> Meter:
    return Meter(SlowComm(clock), clock)


def test_a_meter_is_the_communicator_it_wraps(clock: Clock) -> None:
    comm = SlowComm(clock)
    meter = Meter(comm, clock)
    numbers = np.ones(3, np.int64)
    assert (meter.name, meter.rank, meter.size) == ("slow", 1, 4)
    meter.allreduce(numbers)
    assert numbers.tolist() == [4, 4, 4]
    meter.broadcast(numbers)
    assert numbers.tolist() == [7, 7, 7]
    assert meter.allgather(b"ab") == [b"ab"] * 4
    assert meter.gather(b"ab") is None
    assert meter.exchange([b"", b"a", b"", b"bc"]) == [b"a"] * 4
    assert meter.split(0) is comm
    meter.close()
    assert comm.closed
    with pytest.raises(SystemExit, match="3"):
        meter.abort(3)


def test_each_collective_counts_on_its_own_and_so_do_the_bytes_handed_to_it(meter: Meter, clock: Clock) -> None:
    meter.allreduce(np.zeros(3, np.int64))  # 24
    meter.broadcast(np.zeros((2, 5), np.float32))  # 40
    meter.barrier()
    clock.now += 1
    meter.allgather(b"abc")  # 3
    meter.gather(b"abcdef")  # 6
    meter.exchange([b"abc", b"stays on rank 1", b"", b"abcd"])  # 3 + 0 + 4
    assert meter.lap() == ({}, [2, 2, 5, 2, 2, 2], 16, 24 + 40 + 3 + 6 + 7)


def test_a_phase_is_charged_with_what_happens_inside(meter: Meter, clock: Clock) -> None:
    with meter.phase("train"):
        clock.now += 3
    clock.now += 10  # between phases: in the total only
    with meter.phase("server"):
        clock.now += 1
    assert meter.lap() == ({"train": 3, "server": 1}, [], 14, 0)


def test_a_phase_that_comes_back_adds_up(meter: Meter, clock: Clock) -> None:
    for seconds in (3, 4):
        with meter.phase("train"):
            clock.now += seconds
    assert meter.lap().seconds == {"train": 7}


def test_a_lap_starts_from_nothing(meter: Meter, clock: Clock) -> None:
    with meter.phase("train"):
        clock.now += 3
    meter.allgather(b"abc")
    meter.lap()
    clock.now += 1
    with meter.phase("train"):
        clock.now += 2
    assert meter.lap() == ({"train": 2}, [], 3, 0)


def test_a_finished_lap_is_not_changed_by_the_next(meter: Meter, clock: Clock) -> None:
    with meter.phase("train"):
        clock.now += 3
    seconds = meter.lap().seconds
    with meter.phase("train"):
        clock.now += 2
    assert seconds == {"train": 3}


def test_work_left_on_the_device_is_charged_to_the_phase_that_asked_for_it(clock: Clock) -> None:
    """`idle` is called before the clock is read, so its time counts."""
    queued = [6.0]

    def idle() -> None:
        clock.now += queued.pop() if queued else 0

    meter = Meter(SlowComm(clock), clock, idle)
    with meter.phase("train"):
        clock.now += 1  # asking for the work
    meter.allreduce(np.zeros(1, np.int64))
    assert meter.lap() == ({"train": 7}, [2], 9, 0 + 8)
