"""The meeting point on real sockets and stores, with threads as ranks and as other programs at the port."""

import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from flora_hpc.comm import meeting
from flora_hpc.comm.launch import Launch
from flora_hpc.comm.meeting import Meeting
from flora_hpc.errors import UserError


def free_ports(count: int) -> tuple[int, ...]:
    probes = [socket.create_server(("", 0)) for _ in range(count)]
    ports = tuple(probe.getsockname()[1] for probe in probes)
    for probe in probes:
        probe.close()
    return ports


@contextmanager
def stranger(port: int, answer: bytes = b"") -> Iterator[None]:
    """Another program that listens at `port`; without an answer it does not even accept."""
    listener = socket.create_server(("", port))
    with ThreadPoolExecutor(1) as thread:
        if answer:
            thread.submit(meeting.serve, listener, answer)
        yield
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def outcome(rank: int, size: int, place: Meeting, limit: float) -> object:
    """Rank 0's or another rank's store, or the message of the rank's error."""
    try:
        return meeting.meet(Launch("slurm", rank, size, rank, size), place, limit)
    except UserError as error:
        return str(error)


Meet = Callable[..., list[object]]


@pytest.fixture
def meet(monkeypatch: pytest.MonkeyPatch) -> Meet:
    """`meet(meeting, ranks, size, limit)`: the outcome of each of these ranks, each in a thread."""
    monkeypatch.setattr(meeting, "STRANGER_SECONDS", 0.3)
    monkeypatch.setattr(meeting, "ASK_SECONDS", 0.3)

    def meet(place: Meeting, ranks: list[int], size: int, limit: float = 20) -> list[object]:
        with ThreadPoolExecutor(len(ranks)) as threads:
            return list(threads.map(lambda rank: outcome(rank, size, place, limit), ranks))

    return meet


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_all_ranks_get_one_store(meet: Meet, host: str) -> None:
    stores = meet(Meeting((host,), free_ports(1), "word"), [0, 1, 2], 3)
    stores[1].set("from rank 1", "x")  # type: ignore[attr-defined]
    assert stores[2].get("from rank 1") == b"x"  # type: ignore[attr-defined]


def test_the_port_is_free_again_once_all_are_there(meet: Meet) -> None:
    place = Meeting(("localhost",), free_ports(1), "word")
    meet(place, [0, 1], 2)
    assert meeting.ask("localhost", place.ports[0])[1] is None


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 400 Bad Request\r\n", b"flora_hpc another-job 1\n", b"\xff" * 500, b"flora_hpc word x\n"]
)
def test_a_port_that_another_program_has_is_passed_over(meet: Meet, answer: bytes) -> None:
    place = Meeting(("localhost",), free_ports(3), "word")
    with stranger(place.ports[0], answer):
        stores = meet(place, [0, 1], 2)
    assert not any(isinstance(store, str) for store in stores)


@pytest.mark.parametrize("answer", [b"", b"flora_hpc another-job 1\n"])
def test_every_rank_gives_up_soon_where_the_only_port_is_taken(meet: Meet, answer: bytes) -> None:
    place = Meeting(("localhost",), free_ports(1), "word")
    started = time.monotonic()
    with stranger(place.ports[0], answer):
        first, second = meet(place, [0, 1], 2)
    assert time.monotonic() - started < 10
    assert re.match(r"rank 0 cannot open a port of .* \(\d+: Address already in use\); export MASTER_PORT=", str(first))
    assert re.match(r"another program answers at port \d+ of localhost, where rank 0 should; .*MASTER_PORT=", str(second))


def test_ranks_that_do_not_come_are_named_by_all_that_did(meet: Meet) -> None:
    place = Meeting(("localhost",), free_ports(1), "word")
    first, second = meet(place, [0, 2], 4, limit=1)
    assert re.match(r"rank 1, 3 of 4 did not come to port \d+ of localhost within 1 s; check that every rank runs", str(first))
    assert first == second


def test_a_rank_0_that_does_not_come_is_waited_for_no_longer_than_the_limit(meet: Meet) -> None:
    (only,) = meet(Meeting(("localhost",), free_ports(2), "word"), [1], 2, limit=0.5)
    assert re.match(r"rank 0 does not answer at port \d+ or \d+ of localhost within 0.5 s; ", str(only))


@pytest.mark.parametrize("host", ["no-such-host.invalid", "", "x" * 70 + ".invalid", "a b"])
def test_a_host_that_cannot_be_looked_up_ends_every_rank_at_once(meet: Meet, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str, *more: object, **others: object) -> None:
        raise socket.gaierror(-2, "Name or service not known") if name else UnicodeError("label empty")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for text in meet(Meeting((host,), (1,), "word"), [0, 1], 2):
        assert re.match(r".* cannot look up the host of rank 0 \(.*\); export MASTER_ADDR=<an address of that host>", str(text))


def test_one_known_host_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under an MPI launcher rank 0 sends its name and its addresses; other nodes may not resolve the name."""
    real = socket.getaddrinfo

    def known(name: str, *more: object, **others: object) -> object:
        if name != "127.0.0.1":
            raise socket.gaierror(-3, "Temporary failure in name resolution")
        return real(name, *more, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", known)
    meeting.check_hosts(("node1", "127.0.0.1"))
    with pytest.raises(UserError, match=r"'node1': Temporary failure in name resolution"):
        meeting.check_hosts(("node1",))


@pytest.mark.parametrize("text", ["abc", "0", "70000", "-1", "2950.0", "29500 ", "٢"])
def test_a_wrong_port_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"MASTER_PORT is '.*', but must be a port from 1 to 65535; export MASTER_PORT=29500"):
        meeting.port_number(text)


def test_a_port_is_taken_on_a_machine_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with meeting.listen(Meeting(("localhost",), free_ports(1), "")) as listener:
        assert listener.family == socket.AF_INET
