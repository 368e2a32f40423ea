import threading

import numpy as np
import pytest

from flora_hpc.comm import watchdog
from flora_hpc.comm.communicator import Array
from flora_hpc.comm.meter import Meter
from flora_hpc.comm.watchdog import Watchdog


class Board(dict[str, str]):
    """A store that answers until it is told not to."""

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
    """Rank 1 of 4, in a collective that ends when it is let go."""

    name, rank, size = "stuck", 1, 4

    def __init__(self) -> None:
        self.let_go = threading.Event()

    def allreduce(self, array: Array) -> None:
        assert self.let_go.wait(30)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(watchdog, "MERCY_SECONDS", 0.0)
    monkeypatch.setattr(watchdog, "ANSWER_SECONDS", 0.2)


HOSTS = ["a", "b", "c", "d"]


def wait_with(board: Board | None, limit_seconds: float = 0.2, told_to_stop: bool = False) -> str:
    """What rank 1 says, which is in its first collective, before that is let go."""
    comm, said = Stuck(), []
    meter = Meter(comm)  # type: ignore[arg-type]

    def end(why: str) -> None:
        said.append(why)
        comm.let_go.set()

    with Watchdog(meter, HOSTS, limit_seconds, board, end, lambda: told_to_stop):
        meter.allreduce(np.zeros(1, np.int64))
    (why,) = said
    return why


def test_who_entered_fewer_collectives_did_not_come() -> None:
    board = Board({"at 0": "1 9", "at 2": "0 9", "at 3": "0 2"})
    assert wait_with(board) == (
        "waited 0.2 s (comm.timeout_seconds) in a collective for rank 2 on c, rank 3 on d; the job ends here"
    )
    assert board["at 1"].split()[0] in "01"


def test_a_rank_that_is_silent_when_a_signal_asks_to_stop_is_lost() -> None:
    """srun tells the others to stop when it lost a rank, which does not write any more."""

    class Writing(Board):
        def multi_get(self, keys: list[str]) -> list[bytes]:
            self.update({f"at {rank}": f"1 {int(self[f'at {rank}'].split()[1]) + 1}" for rank in (0, 3)})
            return super().multi_get(keys)

    board = Writing({"at 0": "1 9", "at 2": "1 9", "at 3": "1 2"})
    said = wait_with(board, limit_seconds=20, told_to_stop=True)
    assert said == "a signal asks the job to stop, and no sign of life comes from rank 2 on c; the job ends here"


def test_nobody_is_lost_while_all_write_or_when_no_signal_came() -> None:
    class Writing(Board):
        def multi_get(self, keys: list[str]) -> list[bytes]:
            self.update({f"at {rank}": f"0 {int(self[f'at {rank}'].split()[1]) + 1}" for rank in (0, 2, 3)})
            return super().multi_get(keys)

    assert "waited" in wait_with(Writing({"at 0": "0 9", "at 2": "0 9", "at 3": "0 2"}), told_to_stop=True)
    assert "waited" in wait_with(Board({"at 0": "0 9", "at 2": "0 9", "at 3": "0 2"}))


@pytest.mark.parametrize("gone", [True, False])
def test_a_signal_alone_ends_nothing_while_the_board_is_too_busy_to_answer(gone: bool) -> None:
    """A server that is gone is rank 0's end; one that does not answer in time may serve a thousand ranks."""

    class Unanswering(Board):
        def multi_get(self, keys: list[str]) -> list[bytes]:
            if not gone:
                threading.Event().wait(1)
            raise RuntimeError

    said = wait_with(Unanswering(), limit_seconds=2, told_to_stop=True)
    assert said.startswith("a signal asks the job to stop, and no sign of life comes from rank 0" if gone else "waited 2 s")


def test_without_an_answer_it_is_rank_0() -> None:
    """Whether it says so or does not say anything."""
    board = Board()
    board.answers = False
    assert "in a collective for rank 0 on a;" in wait_with(board)

    class Silent(Board):
        def multi_get(self, keys: list[str]) -> list[bytes]:
            threading.Event().wait(1)
            raise RuntimeError

    assert "in a collective for rank 0 on a;" in wait_with(Silent())


def test_a_rank_that_never_wrote_is_named() -> None:
    assert "for rank 2 on c;" in wait_with(Board({"at 0": "1 9", "at 3": "1 9"}))


def test_without_a_board_nobody_is_named() -> None:
    assert "in a collective for another rank;" in wait_with(None)


def test_when_all_have_come_nobody_is_named() -> None:
    assert "for another rank;" in wait_with(Board({f"at {rank}": "1 9" for rank in (0, 2, 3)}))


def test_a_collective_that_ends_in_time_ends_nothing() -> None:
    comm = Stuck()
    comm.let_go.set()
    meter = Meter(comm)  # type: ignore[arg-type]
    with Watchdog(meter, HOSTS, 0.05, Board(), lambda why: pytest.fail(why)):
        for _ in range(3):
            meter.allreduce(np.zeros(1, np.int64))
        threading.Event().wait(0.3)  # computing is no collective


def test_a_broken_connection_is_told_with_the_ranks_that_are_silent() -> None:
    """Rank 3 still writes; 0 and 2 do not."""

    class Alive(Board):
        beats = 0

        def multi_get(self, keys: list[str]) -> list[bytes]:
            self.beats += 1
            self["at 3"] = f"1 {self.beats}"
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
    with pytest.raises(RuntimeError) as error, Watchdog(meter, HOSTS, 30, Board(), lambda why: pytest.fail(why)):
        raise RuntimeError("outside of a collective")
    assert not hasattr(error.value, "__notes__")


def test_many_ranks_are_not_all_named() -> None:
    names = Watchdog(Meter(Stuck()), ["h"] * 20, 1, None, lambda why: None).names(range(12))  # type: ignore[arg-type]
    assert names.endswith("rank 9 on h and 2 more")
