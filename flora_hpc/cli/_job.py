"""A job on several ranks: every way it can end, ends all of it."""

import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from flora_hpc.comm.communicator import AgreedError, Communicator, connect
from flora_hpc.comm.launch import Launch
from flora_hpc.config import CommConfig
from flora_hpc.errors import UserError


@contextmanager
def job(launch: Launch, config: CommConfig) -> Iterator[Communicator]:
    """Connect the ranks. An error on one of them ends the whole job at once, with that rank's message.

    Without the abort the other ranks would wait for this one in their next collective, or in MPI_Finalize.
    """
    with connect(launch, config) as comm:
        try:
            yield comm
        except AgreedError:
            raise  # every rank knows; rank 0 says it
        except KeyboardInterrupt:
            if comm.size == 1:
                raise
            time.sleep(0 if comm.rank == 0 else 2)  # rank 0 has the file to close
            comm.abort(130)
        except Exception as error:
            mistake = isinstance(error, UserError)
            if comm.size == 1:
                raise
            where = f"flora-hpc: rank {comm.rank} of {comm.size} on {socket.gethostname()}"
            print(f"{where}: {error if mistake else traceback.format_exc()}", file=sys.stderr, flush=True)
            comm.abort(2 if mistake else 1)
