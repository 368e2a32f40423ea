"""Ends a job in which a rank hangs, and names that rank.

    rank 0, 1, 2, ...: every second, in a thread         the store (a thread of rank 0's process)
    "collectives entered, heartbeats sent"     ---->     at 0: "7 93"    at 1: "6 93"    at 2: "7 41"
    over the time limit in collective 7?       <----     rank 1 has not entered it; rank 2 sends no heartbeat

A rank that waits in a collective cannot see which rank it waits for. So it reads the store when the collective takes too long.
Ranks with a lower number of collectives are late. Ranks whose heartbeat stands still are stopped or dead.

A launcher that has lost a rank may send a signal to stop: srun sends TERM, and kills half a minute later. The other ranks wait in a
collective that the lost rank will not enter. After a signal they therefore check all heartbeats at once.
"""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Protocol

from flora_hpc.comm.meter import Meter

HEARTBEAT_SECONDS = 1.0
ANSWER_SECONDS = 2.0  # a store whose server is stopped does not answer at all, whatever its own time limit
GRACE_SECONDS = 1.0  # the other ranks wait so long, and the first rank prints its message


class Store(Protocol):
    """The two calls of torch's TCPStore that the watchdog needs."""

    def set(self, key: str, value: str) -> None: ...

    def multi_get(self, keys: list[str]) -> list[bytes]: ...


class Watchdog:
    """Watches the collectives of one rank, while inside. `hosts` has the host of each rank; without a `store` no rank is named.

    `end` prints a reason and ends the whole job. `stop_requested` returns whether a signal asked this rank to stop.
    """

    def __init__(
        self,
        meter: Meter,
        hosts: Sequence[str],
        limit_seconds: float,
        store: Store | None,
        end: Callable[[str], None],
        stop_requested: Callable[[], bool] = lambda: False,
    ):
        self._meter, self._hosts, self._limit, self._store, self._end = meter, hosts, limit_seconds, store, end
        self._stop_requested = stop_requested
        self._keys = [f"at {rank}" for rank in range(meter.size)]
        self._over = threading.Event()
        self._heartbeat = threading.Thread(target=self._send_heartbeats, name="heartbeat", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._meter.size > 1:
            if self._store is not None and self._meter.rank == 0:  # reading a key that is not set would wait for it
                for key in self._keys:
                    self._store.set(key, "0 0")
            self._heartbeat.start()
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, RuntimeError) and self._meter.inside_since is not None:  # the error does not say which rank is gone
            silent = self.silent_ranks()
            error.add_note(f"No sign of life from {self.names([0] if silent is None else silent)}.")
        self._over.set()
        if self._heartbeat.is_alive():  # at the end of the interpreter the thread must not be inside the store's code
            self._heartbeat.join(ANSWER_SECONDS)

    def _send_heartbeats(self) -> None:
        num_sent = 0
        with suppress(RuntimeError):  # rank 0 is gone
            while self._store is not None:
                self._store.set(self._keys[self._meter.rank], f"{self._meter.num_entered} {num_sent}")
                num_sent += 1
                if self._over.wait(HEARTBEAT_SECONDS):
                    return

    def _watch(self) -> None:
        while not self._over.wait(min(HEARTBEAT_SECONDS, self._limit / 4)):
            since = self._meter.inside_since
            if since is None:
                continue
            if self._stop_requested() and (lost := self.lost_ranks()):
                self._end_without(lost, f"a signal asks the job to stop, and no sign of life comes from {self.names(lost)}")
                return
            if self._meter.clock() - since > self._limit:
                late = self.late_ranks()
                waited = f"waited {self._limit:g} s (comm.timeout_seconds) in a collective"
                self._end_without(late, f"{waited} for {self.names(late)}")
                return

    def _end_without(self, ranks: Sequence[int], why: str) -> None:
        """End the job. The lowest rank that is not in `ranks` prints the reason first."""
        first = min(set(range(self._meter.size)) - set(ranks), default=0)
        time.sleep(0 if self._meter.rank == first else GRACE_SECONDS)
        self._end(f"{why}; the job ends here")

    def lost_ranks(self) -> list[int]:
        """Ranks that sent no heartbeat for some five seconds, in which this rank did not leave its collective."""
        entered, once = self._meter.num_entered, self.silent_ranks() or []
        twice = set(once) & set(self.silent_ranks() or []) if once else set()
        still_waits = self._meter.inside_since is not None and self._meter.num_entered == entered
        return sorted(twice) if still_waits else []

    def late_ranks(self) -> list[int]:
        """Ranks that have not entered the collective in which this rank waits. Rank 0, when the store does not answer."""
        if self._store is None:
            return []
        entered = self._meter.num_entered  # this rank's number in the store may be a second old
        try:
            states = self._read(self._store)
        except ConnectionError:
            states = None
        if states is None:
            return [0]
        return [rank for rank, (number, _) in enumerate(states) if number < entered and rank != self._meter.rank]

    def silent_ranks(self) -> list[int] | None:
        """Ranks that send no heartbeat: they are stopped or dead. None when the store does not answer, which may be busy."""
        if self._store is None:
            return []
        try:
            before = self._read(self._store)
            time.sleep(2.5 * HEARTBEAT_SECONDS)
            after = self._read(self._store)
        except ConnectionError:
            return [0]
        if before is None or after is None:
            return None
        return [rank for rank in range(self._meter.size) if after[rank] == before[rank] and rank != self._meter.rank]

    def _read(self, store: Store) -> list[tuple[int, int]] | None:
        """The state of every rank: collectives entered, heartbeats sent; zeros for a rank that never wrote.

        None when the store does not answer in time. Raises ConnectionError when its server is gone.
        """
        answers: list[list[bytes] | None] = []

        def request() -> None:
            try:
                answers.append(store.multi_get(self._keys))
            except RuntimeError:
                answers.append(None)

        thread = threading.Thread(target=request, name="reads the store", daemon=True)
        thread.start()
        thread.join(ANSWER_SECONDS)
        if not answers:
            return None
        if answers[0] is None:
            raise ConnectionError
        return [(int(entered), int(heartbeats)) for entered, heartbeats in (value.split() for value in answers[0])]

    def names(self, ranks: Sequence[int]) -> str:
        """Ranks and their hosts, for a message."""
        if not ranks:
            return "another rank"
        names = [f"rank {rank} on {self._hosts[rank]}" for rank in ranks[:10]]
        return ", ".join(names) + (f" and {len(ranks) - 10} more" if len(ranks) > 10 else "")
