"""End a job on all ranks when it ends on one rank: otherwise the other ranks would wait for ever."""

import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flora_hpc.comm.communicator import AgreedError, Communicator
from flora_hpc.errors import StoppedError, UserError


@contextmanager
def guarded(comm: Communicator) -> Iterator[None]:
    """End the whole job at once, with this rank's message, when this rank raises an error inside.

    Otherwise the other ranks would wait for this rank in their next collective, or in MPI_Finalize.
    """
    try:
        yield
    except (AgreedError, StoppedError):
        raise  # every rank raises the same error; rank 0 prints it
    except KeyboardInterrupt:
        if comm.size == 1:
            raise
        time.sleep(0 if comm.rank == 0 else 2)  # rank 0 must close its file
        comm.abort(130)
    except SystemExit as error:
        if comm.size == 1:
            raise
        comm.abort(error.code if isinstance(error.code, int) else 1)
    except Exception as error:
        mistake = isinstance(error, UserError)
        if comm.size == 1:
            raise
        where = f"flora-hpc: rank {comm.rank} of {comm.size} on {socket.gethostname()}"
        print(f"{where}: {error if mistake else traceback.format_exc()}", file=sys.stderr, flush=True)
        time.sleep(1)  # an abort may overtake the message: MPICH's launcher then drops the message
        comm.abort(2 if mistake else 1)


def aborter(comm: Communicator) -> Callable[[str], None]:
    """A function that prints a reason and ends the whole job."""

    def print_and_abort(why: str) -> None:
        print(f"flora-hpc: rank {comm.rank} of {comm.size} on {socket.gethostname()}: {why}", file=sys.stderr, flush=True)
        time.sleep(0.5)  # an abort may overtake the message
        comm.abort(1)

    return print_and_abort
