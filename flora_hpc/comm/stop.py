"""Signals that ask a job to stop. A rank notes a signal at once; all ranks stop together, after the same round."""

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


def note_early() -> None:
    """Note USR1 from now on, for a later `Stop`. Otherwise USR1 would end a rank that still imports or connects.

    TERM still ends such a rank: a launcher sends TERM when another rank cannot connect.
    """
    _early.clear()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, lambda number, frame: _early.append(signal.Signals(number).name))


class Stop:
    """Whether a signal asked this rank to stop. The handler only notes the signal: the rank may be inside a collective."""

    def __init__(self, ends_process: bool = True) -> None:
        self.asked_by = ""  # the signal's name
        self.abandon = False  # whether a stop throws the current round away
        self._ends_process, self._received = ends_process, False
        self._wakeup: socket.socket | None = None  # Python writes a signal's number to the other end at once

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note signals while inside. Python allows signal handlers in the main thread alone; other threads note nothing.

        After a stop, signals are ignored where the process ends with the job. Reason: srun sends TERM to the other ranks when the
        first rank exits, and a rank ended by TERM would hide the exit code of the job.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        self.asked_by = self.asked_by or "".join(_early[:1])
        self._wakeup, written = socket.socketpair()
        for end in (self._wakeup, written):
            end.setblocking(False)
        former_fd = signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
        try:
            yield
        except StoppedError:
            if self._ends_process:
                before = dict.fromkeys(SIGNALS, signal.SIG_IGN)
            raise
        finally:
            signal.set_wakeup_fd(former_fd)
            for end in (self._wakeup, written):
                end.close()
            for number, handler in before.items():
                signal.signal(number, handler)

    def received(self) -> bool:
        """Whether a signal to stop was received; for other threads.

        The handler runs in the main thread, which may wait in a collective. Therefore this method reads the wakeup socket, too.
        """
        with suppress(OSError):  # the socket is empty or closed
            while self._wakeup and (numbers := self._wakeup.recv(64)):
                self._received = self._received or bool(set(numbers) & set(SIGNALS))
        return self._received or bool(self.asked_by)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked_by = signal.Signals(number).name

    @property
    def abandons(self) -> bool:
        """Whether this rank abandons the current round."""
        return self.abandon and bool(self.asked_by)

    def agreed(self, comm: Communicator) -> bool:
        """Whether any rank was asked to stop; the same answer on every rank."""
        num_asked = np.array([bool(self.asked_by)], np.int64)
        comm.allreduce(num_asked)
        return bool(num_asked[0])

    def agreed_to_abandon(self, comm: Communicator) -> bool:
        """Whether all ranks abandon the current round, since any rank was asked to stop; the same answer on every rank."""
        return self.abandon and self.agreed(comm)


@contextmanager
def exiting() -> Iterator[None]:
    """Raise SystemExit for a signal that would end the process, while inside: so unfinished files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [number for number in (signal.SIGHUP, *SIGNALS) if signal.getsignal(number) == signal.SIG_DFL]  # nohup ignores HUP
    for number in numbers:
        signal.signal(number, _exit)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _exit(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second signal would interrupt the removal
    raise SystemExit(128 + number)  # a shell's exit code for a signal


def ignore() -> None:
    """Ignore further signals: Slurm would report a finished job, whose ranks wait to exit, as failed."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
