"""Work that goes to whichever rank asks next: counters that all ranks share.

MPI's own shared counters may stand still while rank 0 computes, and gloo has none. The server of torch's TCPStore is a thread of
rank 0 that runs beside any backend and does not need Python.
"""

import fcntl
import json
import secrets
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta

from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]  # its documented home

from flora_hpc.comm.communicator import Communicator, together
from flora_hpc.errors import UserError, reason

REACH_SECONDS = 60  # for a connection to a port that is open; nodes without a name server take tens of seconds
TOKEN = "token"
SIOCGIFADDR = 0x8915  # Linux: an interface's address


class Counters:
    """Deals numbers to ranks, each to the first that asks. A rank that is alone needs no store and gets all of them.

    Rank 0's object is the server, so it must outlive every `draw`. It is not closed when a rank fails: the others would then
    report a lost connection instead of that rank's error.
    """

    def __init__(self, store: TCPStore | None = None, clears: bool = False) -> None:
        self._store, self._clears = store, clears
        self._keys: dict[str, str] = {}  # what was counted last, by purpose

    def store(self) -> Store | None:
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
        while (number := self._store.add(key, 1) - 1) < count:
            yield number


def share(comm: Communicator, timeout_seconds: float, reach_seconds: float = REACH_SECONDS) -> Counters:
    """Counters for all ranks of `comm`, each of which tries for `reach_seconds` to reach an address of rank 0's.

    Raises UserError, on every rank, when some cannot.
    """
    if comm.size == 1:
        return Counters()
    limit = timedelta(seconds=timeout_seconds)

    def serve() -> tuple[TCPStore, Endpoint] | None:
        return open_endpoint(limit) if comm.rank == 0 else None

    served = together(comm, serve)
    endpoint = Endpoint(**json.loads(comm.allgather(json.dumps(asdict(served[1]) if served else None).encode())[0]))
    reach_seconds = min(reach_seconds, timeout_seconds / 2)
    return Counters(together(comm, lambda: served[0] if served else connect(endpoint, limit, reach_seconds)), clears=comm.rank == 0)


@dataclass(frozen=True)
class Endpoint:
    """Where rank 0's counters can be reached, and the word by which they are known to be rank 0's and nobody else's."""

    hosts: list[str]
    port: int
    token: str


def open_endpoint(limit: timedelta) -> tuple[TCPStore, Endpoint]:
    """The server of the counters, and where it is. Raises UserError when this machine lets nobody listen."""
    try:
        store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=limit)
    except (OSError, RuntimeError) as error:
        raise UserError(needed(f"a port that {socket.gethostname()} cannot open ({reason(error)})")) from None
    endpoint = Endpoint([socket.gethostname(), *addresses()], store.port, secrets.token_hex(16))
    store.set(TOKEN, endpoint.token)
    return store, endpoint


def connect(endpoint: Endpoint, limit: timedelta, reach_seconds: float) -> TCPStore:
    """This rank's way to rank 0's counters. Raises UserError when there is none.

    Names are no proof: nodes may have equal ones, and an address of a private network may be somebody else's here. So each place is
    tried in turn, this machine first where the names are equal, until one knows the word.
    """
    mine = socket.gethostname() == endpoint.hosts[0]  # a machine need not know its own name
    problems = []
    for host in ["localhost", *endpoint.hosts] if mine else endpoint.hosts:
        try:  # torch says the same in a hundred lines
            socket.create_connection((host, endpoint.port), reach_seconds).close()
            store = TCPStore(host, endpoint.port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=reach_seconds))
            if store.check([TOKEN]) and store.get(TOKEN) == endpoint.token.encode():
                store.set_timeout(limit)
                return store
            problems.append(f"{host}: another program")
        except (OSError, RuntimeError) as error:
            problems.append(f"{host}: {reason(error)}")
    way = f"a connection to port {endpoint.port} of {endpoint.hosts[0]}"
    raise UserError(needed(f"{way}, which {socket.gethostname()} does not get ({'; '.join(problems)})"))


def needed(what: str) -> str:
    """One sentence: what counters cannot do without, and the cure."""
    return (
        f"cohort.assignment: dynamic and evaluate.overlap need {what}; set cohort.assignment: balanced and evaluate.overlap: false"
    )


def addresses() -> list[str]:
    """This machine's IPv4 addresses, one an interface, but for the loopback's."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # has none
                answer = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found.append(socket.inet_ntoa(answer[20:24]))
    return [address for address in found if not address.startswith("127.")]
