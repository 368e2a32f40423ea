"""Counters that all ranks share: each piece of work goes to the rank that asks next.

MPI's shared counters may stand still while rank 0 computes, and gloo has no counters. The server of torch's TCPStore is a thread of
rank 0. It runs beside any backend and executes no Python.
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

REACH_SECONDS = 60  # to connect to an open port; nodes without a name server take tens of seconds
TOKEN = "token"
ALL = 2**40  # more numbers than any purpose has
SIOCGIFADDR = 0x8915  # Linux: an interface's address


class Counters:
    """Deals numbers to ranks, each number to the first rank that asks. A single rank needs no store and gets all numbers.

    Rank 0's object holds the server, so it must outlive every `draw`. The server stays open when a rank fails: otherwise the other
    ranks would report a lost connection instead of that rank's error.
    """

    def __init__(self, store: TCPStore | None = None, clears: bool = False) -> None:
        self._store, self._clears = store, clears
        self._keys: dict[str, str] = {}  # purpose -> key of its newest counter

    def store(self) -> Store | None:
        """A second connection to the store, for a thread; None for a single rank."""
        return None if self._store is None else self._store.clone()

    def draw(self, purpose: str, round_number: int, count: int) -> Iterator[int]:
        """This rank's numbers out of 0 .. `count` - 1, in rising order; each number is drawn when the iterator asks for it.

        Between two rounds of one purpose all ranks must meet in a collective: rank 0 deletes the counter of the earlier round.
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

    def end(self, purpose: str, round_number: int) -> None:
        """Deal no more numbers of this purpose and round, on any rank."""
        if self._store is not None:
            self._store.add(f"{purpose} {round_number}", ALL)


def share(comm: Communicator, timeout_seconds: float, reach_seconds: float = REACH_SECONDS) -> Counters:
    """Counters for all ranks of `comm`. Each rank tries for `reach_seconds` to reach each address of rank 0.

    Raises UserError, on every rank, when any rank cannot reach rank 0.
    """
    if comm.size == 1:
        return Counters()
    limit = timedelta(seconds=timeout_seconds)

    def open_on_rank_0() -> tuple[TCPStore, Endpoint] | None:
        return open_endpoint(limit) if comm.rank == 0 else None

    server = together(comm, open_on_rank_0)
    endpoint = Endpoint(**json.loads(comm.allgather(json.dumps(asdict(server[1]) if server else None).encode())[0]))
    reach_seconds = min(reach_seconds, timeout_seconds / 2)
    return Counters(together(comm, lambda: server[0] if server else connect(endpoint, limit, reach_seconds)), clears=comm.rank == 0)


@dataclass(frozen=True)
class Endpoint:
    """Hosts and port of rank 0's store, and the token that proves that a store is rank 0's."""

    hosts: list[str]
    port: int
    token: str


def open_endpoint(limit: timedelta) -> tuple[TCPStore, Endpoint]:
    """The server of the counters, and its endpoint. Raises UserError when this machine lets no program listen."""
    try:
        store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=limit)
    except (OSError, RuntimeError) as error:
        raise UserError(unmet_need(f"a port that {socket.gethostname()} cannot open ({reason(error)})")) from None
    endpoint = Endpoint([socket.gethostname(), *addresses()], store.port, secrets.token_hex(16))
    store.set(TOKEN, endpoint.token)
    return store, endpoint


def connect(endpoint: Endpoint, limit: timedelta, reach_seconds: float) -> TCPStore:
    """This rank's connection to rank 0's store. Raises UserError when there is none.

    A host name is no proof: two nodes may have one name, and an address of a private network may lead to another machine here. So
    each host is tried in turn, until a store returns the token. This machine comes first where its name is rank 0's.
    """
    is_same_name = socket.gethostname() == endpoint.hosts[0]  # a machine need not resolve its own name
    problems = []
    for host in ["localhost", *endpoint.hosts] if is_same_name else endpoint.hosts:
        try:  # this check fails with one line, and torch with a hundred
            socket.create_connection((host, endpoint.port), reach_seconds).close()
            store = TCPStore(host, endpoint.port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=reach_seconds))
            if store.check([TOKEN]) and store.get(TOKEN) == endpoint.token.encode():
                store.set_timeout(limit)
                return store
            problems.append(f"{host}: another program")
        except (OSError, RuntimeError) as error:
            problems.append(f"{host}: {reason(error)}")
    connection = f"a connection to port {endpoint.port} of {endpoint.hosts[0]}"
    raise UserError(unmet_need(f"{connection}, which {socket.gethostname()} does not get ({'; '.join(problems)})"))


def unmet_need(what: str) -> str:
    """One sentence: the options that need counters, the missing thing `what`, and the cure."""
    return (
        f"cohort.assignment: dynamic and evaluate.overlap need {what}; set cohort.assignment: balanced and evaluate.overlap: false"
    )


def addresses() -> list[str]:
    """This machine's IPv4 addresses, one per network interface, without the loopback address."""
    all_addresses = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # the interface has no address
                answer = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                all_addresses.append(socket.inet_ntoa(answer[20:24]))
    return [address for address in all_addresses if not address.startswith("127.")]
