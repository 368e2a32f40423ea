"""Every way a job can end on one rank ends it on all of them: an error on one would keep the others waiting for ever."""

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
    """An error inside, on one of several ranks, ends the whole job at once, with that rank's message.

    Without that the other ranks would wait for this one in their next collective, or in MPI_Finalize.
    """
    try:
        yield
    except (AgreedError, StoppedError):
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
        time.sleep(1)  # an abort may overtake what was said: MPICH's launcher then drops it
        comm.abort(2 if mistake else 1)


def ends(comm: Communicator) -> Callable[[str], None]:
    """What says why the job cannot go on, and ends all of it."""

    def say_and_abort(why: str) -> None:
        print(f"flora-hpc: rank {comm.rank} of {comm.size} on {socket.gethostname()}: {why}", file=sys.stderr, flush=True)
        time.sleep(0.5)  # an abort may overtake what was said
        comm.abort(1)

    return say_and_abort
