"""Work that goes to whichever rank asks next: counters that all ranks share.

MPI's own shared counters may stand still while rank 0 computes, and gloo has none. The server of torch's TCPStore is a thread of
rank 0 that runs beside any backend and does not need Python.
"""

import socket
from collections.abc import Iterator
from datetime import timedelta

from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]  # its documented home

from flora_hpc.comm.communicator import Communicator, together
from flora_hpc.errors import UserError

REACH_SECONDS = 60  # for a connection to a port that is open; nodes without a name server take tens of seconds


class Tickets:
    """Deals numbers to ranks, each to the first that asks. A rank that is alone needs no store and gets all of them.

    Rank 0's object is the server, so it must outlive every `draw`. It is not closed when a rank fails: the others would then
    report a lost connection instead of that rank's error.
    """

    def __init__(self, store: TCPStore | None = None, clears: bool = False) -> None:
        self._store, self._clears = store, clears
        self._keys: dict[str, str] = {}  # what was counted last, by purpose

    def board(self) -> Store | None:
        """Another connection to the store, for a thread; None for a rank that is alone."""
        return None if self._store is None else self._store.clone()

    def draw(self, purpose: str, round_number: int, count: int) -> Iterator[int]:
        """This rank's numbers out of 0 .. `count` - 1, smallest first, each settled when it is asked for.

        Between two rounds of one purpose all ranks must meet in a collective: the counter of the earlier one is forgotten.
        """
        if self._store is None:
            yield from range(count)
            return
        old, key = self._keys.get(purpose), f"{purpose} {round_number}"
        if old is not None and self._clears:
            self._store.delete_key(old)
        self._keys[purpose] = key
        while (ticket := self._store.add(key, 1) - 1) < count:
            yield ticket


def share(comm: Communicator, timeout_seconds: float) -> Tickets:
    """Tickets for all ranks of `comm`. Raises UserError, on every rank, when some cannot reach rank 0's port."""
    if comm.size == 1:
        return Tickets()
    limit = timedelta(seconds=timeout_seconds)

    def serve() -> TCPStore | None:
        return TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=limit) if comm.rank == 0 else None

    def reach() -> TCPStore:
        return server or connect(host, int(port), limit)

    server = together(comm, serve)
    address = f"{socket.gethostname()} {server.port}" if server else ""
    host, port = comm.allgather(address.encode())[0].decode().split()
    return Tickets(together(comm, reach), clears=comm.rank == 0)


def connect(host: str, port: int, limit: timedelta) -> TCPStore:
    """This rank's way to rank 0's counters. Raises UserError when there is none."""
    host = "localhost" if host == socket.gethostname() else host  # a machine need not know its own name
    try:  # torch says the same in a hundred lines
        socket.create_connection((host, port), min(REACH_SECONDS, limit.total_seconds() / 2)).close()
    except OSError as error:
        raise UserError(
            f"cohort.assignment: dynamic and evaluate.overlap need a connection to port {port} of {host}, which "
            f"{socket.gethostname()} does not get ({error}); set cohort.assignment: balanced and evaluate.overlap: false"
        ) from None
    return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=limit)
