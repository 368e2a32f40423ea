"""Signals that ask a job to stop: noted at once, acted on where all ranks agree."""

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import numpy as np

from flora_hpc.comm.communicator import Communicator
from flora_hpc.errors import StoppedError

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)  # before a time limit, if the job asks for it; at the limit, or when it is preempted


_early: list[str] = []  # signals that came before a `Stop` listened


def expect() -> None:
    """Note USR1 from now on, for a `Stop` that will listen: it would end a rank that still imports or connects.

    TERM does end such a rank: a launcher sends it when another rank cannot connect.
    """
    _early.clear()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, lambda number, frame: _early.append(signal.Signals(number).name))


class Stop:
    """Whether this rank was asked to stop. A handler only notes it: a rank may be in a collective that others are yet to enter."""

    def __init__(self, abandon: bool = False, ends_process: bool = True) -> None:
        self.asked_by = ""  # the signal's name
        self._abandon, self._ends_process, self._came = abandon, ends_process, False
        self._woken: socket.socket | None = None  # Python writes a signal's number to the other end at once

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note signals while inside. Python allows that in the main thread alone; elsewhere nothing is noted.

        Once the job is stopped they mean nothing more where the process ends with it: srun sends TERM to the other ranks when the
        first one leaves, and a rank that it ended would hide their exit code.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        self.asked_by = self.asked_by or "".join(_early[:1])
        self._woken, woken = socket.socketpair()
        for end in (self._woken, woken):
            end.setblocking(False)
        wakes = signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
        try:
            yield
        except StoppedError:
            if self._ends_process:
                before = dict.fromkeys(SIGNALS, signal.SIG_IGN)
            raise
        finally:
            signal.set_wakeup_fd(wakes)
            for end in (self._woken, woken):
                end.close()
            for number, handler in before.items():
                signal.signal(number, handler)

    def came(self) -> bool:
        """Whether a signal came, for other threads: also one that is not noted yet, since the main thread waits in a collective."""
        with suppress(OSError):  # nothing came, or it listens no more
            while self._woken and (numbers := self._woken.recv(64)):
                self._came = self._came or bool(set(numbers) & set(SIGNALS))
        return self._came or bool(self.asked_by)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked_by = signal.Signals(number).name

    @property
    def abandons(self) -> bool:
        """Whether the round that is played is given up."""
        return self._abandon and bool(self.asked_by)

    def agreed(self, comm: Communicator) -> bool:
        """Whether any rank was asked; the same answer on every rank."""
        ranks = np.array([bool(self.asked_by)], np.int64)
        comm.allreduce(ranks)
        return bool(ranks[0])

    def agreed_to_abandon(self, comm: Communicator) -> bool:
        """Whether the round that is played is given up, since any rank was asked; the same answer on every rank."""
        return self._abandon and self.agreed(comm)


@contextmanager
def exiting() -> Iterator[None]:
    """Let a signal that ends a process raise SystemExit while inside, so that files in progress are removed on the way out."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [number for number in (signal.SIGHUP, *SIGNALS) if signal.getsignal(number) == signal.SIG_DFL]  # nohup ignores one
    for number in numbers:
        signal.signal(number, _exit)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _exit(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one would break off the removal
    raise SystemExit(128 + number)  # the code that a shell gives


def ignore() -> None:
    """Let signals mean nothing any more: a job that is done and waits to leave would be told to have failed."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
