import threading

import numpy as np
import pytest

from flora_hpc.comm import watchdog
from flora_hpc.comm.communicator import Array
from flora_hpc.comm.meter import Meter
from flora_hpc.comm.watchdog import Watchdog


class Answering(dict[str, str]):
    """A store that answers while `answers` is true."""

    answers = True

    def set(self, key: str, value: str) -> None:
        if not self.answers:
            raise RuntimeError("no answer")
        self[key] = value

    def multi_get(self, keys: list[str]) -> list[bytes]:
        if not self.answers:
            raise RuntimeError("no answer")
        return [self.get(key, "0 0").encode() for key in keys]


class Stuck:
    """Rank 1 of 4, in a collective that ends when it is released."""

    name, rank, size = "stuck", 1, 4

    def __init__(self) -> None:
        self.released = threading.Event()

    def allreduce(self, array: Array) -> None:
        assert self.released.wait(30)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(watchdog, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr(watchdog, "ANSWER_SECONDS", 0.2)


HOSTS = ["a", "b", "c", "d"]


def wait_with(store: Answering | None, limit_seconds: float = 0.2, stop_requested: bool = False) -> str:
    """What rank 1 prints while it waits in its first collective."""
    comm, messages = Stuck(), []
    meter = Meter(comm)  # type: ignore[arg-type]

    def end(why: str) -> None:
        messages.append(why)
        comm.released.set()

    with Watchdog(meter, HOSTS, limit_seconds, store, end, lambda: stop_requested):
        meter.allreduce(np.zeros(1, np.int64))
    (why,) = messages
    return why


def test_a_rank_that_entered_fewer_collectives_is_late() -> None:
    store = Answering({"at 0": "1 9", "at 2": "0 9", "at 3": "0 2"})
    assert wait_with(store) == (
        "waited 0.2 s (comm.timeout_seconds) in a collective for rank 2 on c, rank 3 on d; the job ends here"
    )
    assert store["at 1"].split()[0] in "01"


def test_a_rank_that_is_silent_when_a_signal_asks_to_stop_is_lost() -> None:
    """srun signals the other ranks when it lost a rank, which sends no heartbeat any more."""

    class Writing(Answering):
        def multi_get(self, keys: list[str]) -> list[bytes]:
            self.update({f"at {rank}": f"1 {int(self[f'at {rank}'].split()[1]) + 1}" for rank in (0, 3)})
            return super().multi_get(keys)

    store = Writing({"at 0": "1 9", "at 2": "1 9", "at 3": "1 2"})
    message = wait_with(store, limit_seconds=20, stop_requested=True)
    assert message == "a signal asks the job to stop, and no sign of life comes from rank 2 on c; the job ends here"


def test_nobody_is_lost_while_all_write_or_when_no_signal_came() -> None:
    class Writing(Answering):
        def multi_get(self, keys: list[str]) -> list[bytes]:
            self.update({f"at {rank}": f"0 {int(self[f'at {rank}'].split()[1]) + 1}" for rank in (0, 2, 3)})
            return super().multi_get(keys)

    assert "waited" in wait_with(Writing({"at 0": "0 9", "at 2": "0 9", "at 3": "0 2"}), stop_requested=True)
    assert "waited" in wait_with(Answering({"at 0": "0 9", "at 2": "0 9", "at 3": "0 2"}))


@pytest.mark.parametrize("gone", [True, False])
def test_a_signal_alone_ends_nothing_while_the_board_is_too_busy_to_answer(gone: bool) -> None:
    """Without a server rank 0 has ended; a server that does not answer in time may be busy with a thousand ranks."""

    class Unanswering(Answering):
        def multi_get(self, keys: list[str]) -> list[bytes]:
            if not gone:
                threading.Event().wait(1)
            raise RuntimeError

    message = wait_with(Unanswering(), limit_seconds=2, stop_requested=True)
    assert message.startswith("a signal asks the job to stop, and no sign of life comes from rank 0" if gone else "waited 2 s")


def test_without_an_answer_it_is_rank_0() -> None:
    """The store may refuse the request or not answer at all."""
    store = Answering()
    store.answers = False
    assert "in a collective for rank 0 on a;" in wait_with(store)

    class Silent(Answering):
        def multi_get(self, keys: list[str]) -> list[bytes]:
            threading.Event().wait(1)
            raise RuntimeError

    assert "in a collective for rank 0 on a;" in wait_with(Silent())


def test_a_rank_that_never_wrote_is_named() -> None:
    assert "for rank 2 on c;" in wait_with(Answering({"at 0": "1 9", "at 3": "1 9"}))


def test_without_a_store_no_rank_is_named() -> None:
    assert "in a collective for another rank;" in wait_with(None)


def test_when_all_have_come_nobody_is_named() -> None:
    assert "for another rank;" in wait_with(Answering({f"at {rank}": "1 9" for rank in (0, 2, 3)}))


def test_a_collective_that_ends_in_time_ends_nothing() -> None:
    comm = Stuck()
    comm.released.set()
    meter = Meter(comm)  # type: ignore[arg-type]
    with Watchdog(meter, HOSTS, 0.05, Answering(), lambda why: pytest.fail(why)):
        for _ in range(3):
            meter.allreduce(np.zeros(1, np.int64))
        threading.Event().wait(0.3)  # computing is no collective


def test_a_broken_connection_names_the_silent_ranks() -> None:
    """Rank 3 sends heartbeats; ranks 0 and 2 do not."""

    class Alive(Answering):
        num_heartbeats = 0

        def multi_get(self, keys: list[str]) -> list[bytes]:
            self.num_heartbeats += 1
            self["at 3"] = f"1 {self.num_heartbeats}"
            return super().multi_get(keys)

    class Broken(Stuck):
        def allreduce(self, array: Array) -> None:
            raise RuntimeError("Connection closed by peer")

    meter = Meter(Broken())  # type: ignore[arg-type]
    with (
        pytest.raises(RuntimeError) as error,
        Watchdog(meter, HOSTS, 30, Alive({"at 0": "1 9", "at 2": "1 9"}), lambda why: pytest.fail(why)),
    ):
        meter.allreduce(np.zeros(1, np.int64))
    assert error.value.__notes__ == ["No sign of life from rank 0 on a, rank 2 on c."]


def test_other_errors_are_left_alone() -> None:
    meter = Meter(Stuck())  # type: ignore[arg-type]
    with pytest.raises(RuntimeError) as error, Watchdog(meter, HOSTS, 30, Answering(), lambda why: pytest.fail(why)):
        raise RuntimeError("outside of a collective")
    assert not hasattr(error.value, "__notes__")


def test_many_ranks_are_not_all_named() -> None:
    names = Watchdog(Meter(Stuck()), ["h"] * 20, 1, None, lambda why: None).names(range(12))  # type: ignore[arg-type]
    assert names.endswith("rank 9 on h and 2 more")
