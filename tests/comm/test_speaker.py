"""The first rank to ask a real store, like the store of torchrun's agent, and the cases without such a store."""

import socket
import threading
import time

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from flora_hpc.comm import speaker
from flora_hpc.comm.launch import Launch

RANKS = [Launch("torchrun", rank, 2, rank, 2) for rank in range(2)]


def variables(port: object, **more: str) -> dict[str, str]:
    return {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)} | more


def test_the_first_that_asks_speaks() -> None:
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    environ = variables(store.port, TORCHELASTIC_RESTART_COUNT="0")
    assert [speaker.is_first(rank, environ) for rank in (RANKS[1], RANKS[0])] == [True, False]
    assert speaker.is_first(RANKS[0], environ | {"TORCHELASTIC_RESTART_COUNT": "1"}) is True, "ranks were started anew"


@pytest.mark.parametrize("port", ["closed", "silent", "", "x", "99999"])
def test_nobody_answers(port: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(speaker, "ASK_SECONDS", 0.2)
    with socket.create_server(("localhost", 0)) as stranger:
        number = stranger.getsockname()[1]
        if port == "closed":
            stranger.close()
        begin = time.monotonic()
        assert speaker.is_first(RANKS[0], variables(number if port in ("closed", "silent") else port)) is None
        assert time.monotonic() - begin < 2
    for thread in threading.enumerate():
        if thread.name == "speaker":
            thread.join(5)  # whose connection is closed now
    assert port == "silent" or capfd.readouterr().err == ""


def test_without_the_agents_store_nobody_is_asked() -> None:
    assert speaker.is_first(RANKS[0], {}) is None
    assert speaker.is_first(Launch("slurm", 0, 2, 0, 2), variables(1)) is None
