"""Ends a job in which a rank hangs, and says which one it is.

Ranks that wait in a collective cannot tell for whom: nothing comes. So a thread of each rank writes down, every second, how many
collectives it has entered, on a board that all can read (the server is a thread of rank 0's process). Whoever has been in one for
too long looks there: the ranks that have entered fewer did not come, and those that no longer write are stopped or dead.

A signal that asks to stop may come from a launcher that has lost a rank: srun sends TERM then, and kills half a minute later. The
other ranks, in a collective that the lost one will not enter, look at once whether all still write.
"""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Protocol

from flora_hpc.comm.meter import Meter

BEAT_SECONDS = 1.0
ANSWER_SECONDS = 2.0  # a store whose server is stopped does not answer at all, whatever its own time limit
MERCY_SECONDS = 1.0  # that other ranks leave the first one to speak


class Board(Protocol):
    """What of torch's TCPStore is used."""

    def set(self, key: str, value: str) -> None: ...

    def multi_get(self, keys: list[str]) -> list[bytes]: ...


class Watchdog:
    """Watches the collectives of one rank, while inside. `hosts` are those of all ranks; without a `board` no other rank is named.

    `end` says why, and ends the whole job. `told_to_stop` is whether a signal asked this rank to.
    """

    def __init__(
        self,
        meter: Meter,
        hosts: Sequence[str],
        limit_seconds: float,
        board: Board | None,
        end: Callable[[str], None],
        told_to_stop: Callable[[], bool] = lambda: False,
    ):
        self._meter, self._hosts, self._limit, self._board, self._end = meter, hosts, limit_seconds, board, end
        self._told_to_stop = told_to_stop
        self._keys = [f"at {rank}" for rank in range(meter.size)]
        self._over = threading.Event()
        self._writer = threading.Thread(target=self._write, name="signs of life", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._meter.size > 1:
            if self._board is not None and self._meter.rank == 0:  # asking for what is not there would wait for it
                for key in self._keys:
                    self._board.set(key, "0 0")
            self._writer.start()
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, RuntimeError) and self._meter.inside_since is not None:  # a broken connection does not say whose
            silent = self.silent()
            error.add_note(f"No sign of life from {self.names([0] if silent is None else silent)}.")
        self._over.set()
        if self._writer.is_alive():  # at the end of the interpreter it must not be within the store's code
            self._writer.join(ANSWER_SECONDS)

    def _write(self) -> None:
        beats = 0
        with suppress(RuntimeError):  # rank 0 is gone
            while self._board is not None:
                self._board.set(self._keys[self._meter.rank], f"{self._meter.num_entered} {beats}")
                beats += 1
                if self._over.wait(BEAT_SECONDS):
                    return

    def _watch(self) -> None:
        while not self._over.wait(min(BEAT_SECONDS, self._limit / 4)):
            since = self._meter.inside_since
            if since is None:
                continue
            if self._told_to_stop() and (lost := self.lost()):
                self._end_without(lost, f"a signal asks the job to stop, and no sign of life comes from {self.names(lost)}")
                return
            if self._meter.clock() - since > self._limit:
                missing = self.missing()
                waited = f"waited {self._limit:g} s (comm.timeout_seconds) in a collective"
                self._end_without(missing, f"{waited} for {self.names(missing)}")
                return

    def _end_without(self, ranks: Sequence[int], why: str) -> None:
        """End the job; the first of the other ranks is the first to say why."""
        first = min(set(range(self._meter.size)) - set(ranks), default=0)
        time.sleep(0 if self._meter.rank == first else MERCY_SECONDS)
        self._end(f"{why}; the job ends here")

    def lost(self) -> list[int]:
        """Ranks that are known to have been silent for some five seconds, in which this one did not leave its collective."""
        entered, once = self._meter.num_entered, self.silent() or []
        ranks = set(once) & set(self.silent() or []) if once else set()
        waits = self._meter.inside_since is not None and self._meter.num_entered == entered
        return sorted(ranks) if waits else []

    def missing(self) -> list[int]:
        """Ranks that have not entered the collective that this one is in. Rank 0, when its board does not answer."""
        if self._board is None:
            return []
        entered = self._meter.num_entered  # those of this rank on the board may be a second old
        try:
            read = self._read(self._board)
        except ConnectionError:
            read = None
        return (
            [0]
            if read is None
            else [rank for rank, (theirs, _) in enumerate(read) if theirs < entered and rank != self._meter.rank]
        )

    def silent(self) -> list[int] | None:
        """Ranks that do not write any more: they are stopped or dead. None when the board does not answer, which may be busy."""
        if self._board is None:
            return []
        try:
            before = self._read(self._board)
            time.sleep(2.5 * BEAT_SECONDS)
            after = self._read(self._board)
        except ConnectionError:
            return [0]
        if before is None or after is None:
            return None
        return [rank for rank in range(self._meter.size) if after[rank] == before[rank] and rank != self._meter.rank]

    def _read(self, board: Board) -> list[tuple[int, int]] | None:
        """What every rank has written: collectives entered, and how often it wrote; zeros for one that never did.

        None when the board does not answer in time; raises ConnectionError when its server is gone.
        """
        answers: list[list[bytes] | None] = []

        def ask() -> None:
            try:
                answers.append(board.multi_get(self._keys))
            except RuntimeError:
                answers.append(None)

        asking = threading.Thread(target=ask, name="asks the board", daemon=True)
        asking.start()
        asking.join(ANSWER_SECONDS)
        if not answers:
            return None
        if answers[0] is None:
            raise ConnectionError
        return [(int(entered), int(beats)) for entered, beats in (written.split() for written in answers[0])]

    def names(self, ranks: Sequence[int]) -> str:
        """Ranks and their hosts, for a message."""
        if not ranks:
            return "another rank"
        told = [f"rank {rank} on {self._hosts[rank]}" for rank in ranks[:10]]
        return ", ".join(told) + (f" and {len(ranks) - 10} more" if len(ranks) > 10 else "")
