"""Connect the ranks of torch.distributed at an endpoint: a port of rank 0's host that answers with a token of this job.

    rank 0                                            rank 1, 2, ...
    opens the first free port of `ports`              resolves `hosts`; without any address it ends at once
    answers 'flora_hpc <token> <port of its store>'   asks each port in turn; skips ports of other programs
    waits until every rank is in the store   <----    writes 'rank 1' into the store, waits for rank 0's verdict
    writes 'go', or names the missing ranks  ---->    continues, or ends with the same sentence

A store of torch alone would wait for half an hour in each of these failures, or take another program for rank 0.
"""

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # its documented home

from flora_hpc.comm.launch import Launch
from flora_hpc.errors import UserError, reason

MEET_SECONDS = 300.0  # the slowest node of a large job needs minutes to load PyTorch from a busy file system
ASK_SECONDS = 2.0  # for an answer of an open port
STRANGER_SECONDS = 8.0  # tolerated while a port belongs to another program, such as an earlier job that is still ending
PAUSE_SECONDS = 0.1
CURE = "check that every rank runs and reaches it, or name another: export MASTER_ADDR=<host of rank 0> MASTER_PORT=<a free port>"


@dataclass(frozen=True)
class Meeting:
    """The names or addresses of rank 0's host, the ports that rank 0 may open, and the token of this job."""

    hosts: tuple[str, ...]
    ports: tuple[int, ...]
    token: str

    @property
    def place(self) -> str:
        """Ports and host, for a message."""
        ports = " or ".join(map(str, self.ports))
        return f"port {ports} of {self.hosts[0]}"


def port_number(text: str) -> int:
    """The port that MASTER_PORT names. Raises UserError for any other text."""
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 65536):
        raise UserError(f"MASTER_PORT is {text!r}, but must be a port from 1 to 65535; export MASTER_PORT=29500, for example")
    return int(text)


def check_hosts(hosts: tuple[str, ...]) -> None:
    """Raise UserError when this machine can resolve none of `hosts`."""
    reasons = []
    for host in hosts:
        try:
            socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:  # UnicodeError: a name longer than DNS has
            reasons.append(f"{host!r}: {reason(error)}")
        else:
            return
    raise UserError(
        f"{socket.gethostname()} cannot look up the host of rank 0 ({'; '.join(reasons)}); "
        "export MASTER_ADDR=<an address of that host> and MASTER_PORT=<a free port of it>, the same for every rank"
    )


def meet(launch: Launch, meeting: Meeting, limit_seconds: float) -> TCPStore:
    """The store of this job, once all ranks are connected. Raises UserError, on every connected rank, when a rank is missing."""
    check_hosts(meeting.hosts)
    limit = min(limit_seconds, MEET_SECONDS)
    return receive(launch, meeting, limit, limit_seconds) if launch.rank == 0 else join(launch, meeting, limit, limit_seconds)


def receive(launch: Launch, meeting: Meeting, limit: float, later_limit: float) -> TCPStore:
    """Rank 0's store, once every rank has connected, within `limit` seconds. Later calls wait `later_limit` seconds."""
    listener = listen(meeting)
    try:
        store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=later_limit))
    except (OSError, RuntimeError) as error:
        listener.close()
        raise UserError(f"{socket.gethostname()} lets no program open a port ({reason(error)})") from None
    answer = f"flora_hpc {meeting.token} {store.port}\n".encode()
    try:
        threading.Thread(target=serve, args=(listener, answer), name="meeting", daemon=True).start()
        missing, end = list(range(1, launch.size)), time.monotonic() + limit
        while missing and time.monotonic() < end:
            missing = [rank for rank in missing if not store.check([f"rank {rank}"])]
            time.sleep(PAUSE_SECONDS if missing else 0)
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # otherwise the thread in `accept` keeps the port open
        listener.close()
    sentence = ""
    if missing:
        some = ", ".join(map(str, missing[:10])) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
        sentence = f"rank {some} of {launch.size} did not come to {meeting.place} within {limit:g} s; {CURE}"
    store.set("verdict", sentence or "go")
    if sentence:
        time.sleep(1)  # the store ends with this process; the other ranks read the verdict first
        raise UserError(sentence)
    return store


def listen(meeting: Meeting) -> socket.socket:
    """A socket at the first port that is free. Raises UserError when none is."""
    reasons = []
    for port in meeting.ports:
        try:
            if socket.has_dualstack_ipv6():
                with suppress(OSError):  # IPv6 is switched off on this machine; or the port is in use, and IPv4 fails, too
                    return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
            return socket.create_server(("", port), backlog=1024)
        except OSError as error:
            reasons.append(f"{port}: {os.strerror(error.errno or 0)}")
    raise UserError(
        f"rank 0 cannot open a port of {socket.gethostname()} to meet the other ranks ({'; '.join(reasons)}); "
        "export MASTER_PORT=<a free port> and MASTER_ADDR=<host of rank 0>, the same for every rank"
    )


def serve(listener: socket.socket, answer: bytes) -> None:
    """Send `answer` to every program that connects, until the listener is closed."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, suppress(OSError):
            connection.sendall(answer)


def join(launch: Launch, meeting: Meeting, limit: float, later_limit: float) -> TCPStore:
    """Another rank's connection to rank 0's store, once rank 0 has written its verdict."""
    address, port = find_store(meeting, limit)
    try:
        store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=2 * limit + 10))
        store.set(f"rank {launch.rank}", "")
        verdict = store.get("verdict").decode()
    except (OSError, RuntimeError) as error:
        raise UserError(f"rank 0 at {meeting.place} left before all ranks were there ({reason(error)}); see its message") from None
    if verdict != "go":
        raise UserError(verdict)
    store.set_timeout(timedelta(seconds=later_limit))
    return store


def find_store(meeting: Meeting, limit: float, clock: Callable[[], float] = time.monotonic) -> tuple[str, int]:
    """The address and the port of rank 0's store. Raises UserError without an answer in time, or when all answers are wrong."""
    begin = clock()
    since = begin  # the last time that a port was closed: rank 0 may open it next
    while True:
        answers = {(host, port): ask(host, port) for host in meeting.hosts for port in meeting.ports}
        for address, text in answers.values():
            words = (text or "").split()
            if words[:2] == ["flora_hpc", meeting.token] and len(words) == 3 and words[2].isdecimal():
                return address, int(words[2])
        now = clock()
        if any(text is None for _, text in answers.values()):
            since = now
        if now - since > min(STRANGER_SECONDS, limit):
            raise UserError(f"another program answers at {meeting.place}, where rank 0 should; {CURE}")
        if now - begin > limit:
            raise UserError(f"rank 0 does not answer at {meeting.place} within {limit:g} s; {CURE}")
        time.sleep(PAUSE_SECONDS)


def ask(host: str, port: int) -> tuple[str, str | None]:
    """The address of `host`, and the answer of its port. None for a closed port; '' for a port without an answer."""
    try:
        with socket.create_connection((host, port), ASK_SECONDS) as connection:
            connection.settimeout(ASK_SECONDS)
            address = str(connection.getpeername()[0])
            try:
                with connection.makefile("rb") as lines:
                    return address, lines.readline(200).decode("ascii", "replace")
            except OSError:
                return address, ""
    except OSError:
        return host, None
