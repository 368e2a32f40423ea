"""Signals to stop: noted while a run listens, and ignored after the stop."""

import hashlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from flora_hpc.comm.stop import SIGNALS, Stop, exiting
from flora_hpc.errors import StoppedError


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_is_noted_and_the_old_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    stop = Stop()
    with stop.listening():
        assert stop.asked_by == ""
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.asked_by == "SIGUSR1"
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_a_process_lets_it_tidy_up_first(number: int) -> None:
    def work() -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            os.kill(os.getpid(), number)  # a second one does not break that off

    signal.signal(number, signal.SIG_DFL)
    with pytest.raises(SystemExit, match=f"^{128 + number}$"), exiting():
        work()
    assert signal.getsignal(number) == signal.SIG_DFL


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with exiting():
        os.kill(os.getpid(), signal.SIGHUP)
    assert signal.signal(signal.SIGHUP, before) == signal.SIG_IGN


def test_a_job_that_was_stopped_leaves_with_its_own_exit_code() -> None:
    """Under `srun --kill-on-bad-exit=1` the first rank that leaves with 75 makes srun send TERM to all others."""
    with pytest.raises(StoppedError), Stop().listening():
        raise StoppedError("saved")
    for number in SIGNALS:
        os.kill(os.getpid(), number)


def test_a_signal_is_seen_by_other_threads_while_the_main_one_is_in_a_library() -> None:
    """The handler runs after the collective, which does not end when a lost rank does not enter it."""
    stop, states = Stop(), []

    def signal_and_check() -> None:
        before = stop.received()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)  # the main thread takes it, when its turn comes
        states.append((before, stop.received(), stop.asked_by))

    with stop.listening():
        thread = threading.Timer(0.1, signal_and_check)
        thread.start()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 3_000_000)  # no Python runs in it, for a second or more
        thread.join()
    assert states == [(False, True, "")]
    assert (stop.received(), stop.asked_by) == (True, "SIGTERM")
