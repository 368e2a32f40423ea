"""Shared counters on real stores, with threads as ranks."""

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from flora_hpc.comm import counters
from flora_hpc.comm.backends.serial import Serial
from flora_hpc.comm.counters import Counters, Endpoint
from flora_hpc.errors import UserError

LIMIT = timedelta(seconds=30)


Rank0 = tuple[TCPStore, Endpoint]


@pytest.fixture
def rank_0() -> Rank0:
    return counters.open_endpoint(LIMIT)


@pytest.fixture
def server(rank_0: Rank0) -> TCPStore:
    return rank_0[0]


def draw_all(rank_0: Rank0, size: int, count: int, work: Callable[[int], None]) -> list[list[int]]:
    """The numbers that each of `size` ranks draws. A rank calls `work(number)` before it draws again."""

    def draw(rank: int) -> list[int]:
        dealer, drawn = Counters(counters.connect(rank_0[1], LIMIT, 30)), []
        for number in dealer.draw("groups", 1, count):
            drawn.append(number)
            work(number)
        return drawn

    with ThreadPoolExecutor(size) as ranks:
        return list(ranks.map(draw, range(size)))


@pytest.mark.parametrize(("size", "count"), [(3, 50), (4, 3), (2, 0)])
def test_every_number_is_dealt_once_and_a_rank_gets_smaller_ones_first(rank_0: Rank0, size: int, count: int) -> None:
    drawn = draw_all(rank_0, size, count, lambda number: time.sleep(0.001))
    assert sorted(number for numbers in drawn for number in numbers) == list(range(count))
    assert all(numbers == sorted(numbers) for numbers in drawn)


def test_a_rank_that_is_at_work_gets_nothing_meanwhile(rank_0: Rank0) -> None:
    """The rank that draws 0 works on it until the other rank has drawn all other numbers."""
    has_one, others_are_done = threading.Event(), threading.Event()

    def work(number: int) -> None:
        if number == 0:
            has_one.set()
            assert others_are_done.wait(30)
        else:
            assert has_one.wait(30)
            if number == 9:
                others_are_done.set()

    slow, quick = sorted(draw_all(rank_0, 2, 10, work), key=len)  # either rank may draw 0
    assert len(slow) == 1
    assert len(quick) == 9


def test_purposes_and_rounds_are_counted_on_their_own(server: TCPStore) -> None:
    dealer = Counters(server, clears=True)
    assert list(dealer.draw("groups", 1, 3)) == list(dealer.draw("test", 1, 3)) == list(dealer.draw("groups", 2, 3)) == [0, 1, 2]


def test_the_counters_of_earlier_rounds_are_forgotten(server: TCPStore) -> None:
    dealer = Counters(server, clears=True)
    num_keys = []
    for number in range(5):
        list(dealer.draw("groups", number, 3))
        num_keys.append(server.num_keys())
    assert num_keys == num_keys[:1] * 5


def test_a_rank_alone_gets_everything_and_no_port_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "TCPStore", None)
    assert list(counters.share(Serial(), 60).draw("groups", 1, 3)) == [0, 1, 2]


def closed_port() -> int:
    with socket.socket() as nobody:
        nobody.bind(("localhost", 0))
        port: int = nobody.getsockname()[1]
        return port


def test_a_rank_that_cannot_reach_rank_0_is_told_what_to_do() -> None:
    port, name = closed_port(), socket.gethostname()
    with pytest.raises(UserError, match=rf"to port {port} of {name}, .*localhost: .*refused.*; set cohort\.assignment: balanced"):
        counters.connect(Endpoint([name], port, "word"), LIMIT, 30)


def test_a_machine_with_rank_0s_name_is_not_taken_for_rank_0s(rank_0: Rank0, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0's store has a token: another program at the same port of a machine with the same name lacks it."""
    impostor = TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=LIMIT)
    impostor.set("token", "another word")
    store, endpoint = rank_0
    monkeypatch.setattr(socket, "gethostname", lambda: "node")
    places = {"localhost": impostor.port, "node": closed_port(), "10.9.8.7": store.port}  # as seen from the other node
    originals = {"socket": socket.create_connection, "store": counters.TCPStore}
    monkeypatch.setattr(socket, "create_connection", lambda at, limit: originals["socket"](("localhost", places[at[0]]), limit))
    monkeypatch.setattr(counters, "TCPStore", lambda host, port, **more: originals["store"]("localhost", places[host], **more))
    connection = counters.connect(Endpoint(["node", "10.9.8.7"], endpoint.port, endpoint.token), LIMIT, 30)
    assert connection.get("token") == endpoint.token.encode()
    with pytest.raises(UserError, match="localhost: another program; node: "):
        counters.connect(Endpoint(["node"], endpoint.port, endpoint.token), LIMIT, 30)


def test_rank_0_names_every_interface_but_the_loopback() -> None:
    all_addresses = counters.addresses()
    assert all(len(address.split(".")) == 4 for address in all_addresses)
    assert not any(address.startswith("127.") for address in all_addresses)
