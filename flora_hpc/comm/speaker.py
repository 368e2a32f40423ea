"""Choose the rank that prints a mistake of all ranks, under torchrun, whose agent ends all ranks when the first one exits."""

import os
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta

from flora_hpc.comm.launch import Launch

ASK_SECONDS = 2.0  # for an answer of the agent's store, which starts before the ranks


def is_first(launch: Launch, environ: Mapping[str, str] = os.environ) -> bool | None:
    """Whether this rank is the first of its job to ask. None without torchrun, or when its agent's store does not answer."""
    if launch.launcher != "torchrun" or environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    host, port = environ.get("MASTER_ADDR", ""), environ.get("MASTER_PORT", "")
    if not (host and port.isdecimal()):
        return None
    answers: list[int] = []
    key = f"flora_hpc speaker {environ.get('TORCHELASTIC_RESTART_COUNT', '')}"  # a restart of the ranks chooses again

    def ask() -> None:
        with suppress(OSError, RuntimeError, OverflowError):
            socket.create_connection((host, int(port)), ASK_SECONDS).close()  # torch tries a closed port for long, and warns
            store = TCPStore(host, int(port), is_master=False, wait_for_workers=False, timeout=timedelta(seconds=ASK_SECONDS))
            answers.append(store.add(key, 1))

    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch takes seconds to import

    thread = threading.Thread(target=ask, name="speaker", daemon=True)  # another program may accept, and never answer
    thread.start()
    thread.join(2 * ASK_SECONDS)
    return answers[0] == 1 if answers else None
