"""A job on several ranks: every way it can end, ends all of it."""

import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NoReturn

from flora_hpc.comm import mpilibrary, speaker
from flora_hpc.comm.communicator import AgreedError, Communicator, connect, together
from flora_hpc.comm.launch import Launch
from flora_hpc.config import CommConfig, Config
from flora_hpc.errors import UserError
from flora_hpc.job import guarded

AT_ONCE = 0.5  # seconds in which all ranks learn of a mistake in the same collective
LATER = 5.0  # seconds that other ranks wait with a mistake: a launcher may end all ranks, the one that speaks too, with the first


@contextmanager
def job(launch: Launch, config: CommConfig) -> Iterator[Communicator]:
    """Connect the ranks. An error on one of them ends the whole job at once, with that rank's message.

    Without the abort the other ranks would wait for this one in their next collective, or in MPI_Finalize.
    """
    with ExitStack() as connected:
        try:
            comm = connected.enter_context(connect(launch, config))
        except UserError as error:
            if launch.size == 1:
                raise
            leave_alone(launch, error)
        with guarded(comm):
            yield comm


def says(launch: Launch, agreed: bool = False) -> bool:
    """Whether this rank says a mistake that all ranks make: the first one under torchrun, else rank 0.

    The other ranks wait before they leave, where the launcher ends all ranks with the first that leaves. Where torchrun's store
    does not answer, a rank that is still there afterwards says it, too: better twice than never. With `agreed` all ranks learned of
    the mistake in the same collective.
    """
    is_first = speaker.is_first(launch)
    if is_first or (is_first is None and launch.rank == 0):
        return True
    if launch.launcher in ("slurm", "torchrun"):
        time.sleep(AT_ONCE if agreed else LATER)
    return is_first is None and launch.launcher == "torchrun" and not agreed


def leave_alone(launch: Launch, error: UserError) -> NoReturn:
    """End a rank that cannot connect, and with it the others, which may be right where they are and wait for this one.

    A mistake that all ranks make is said by rank 0, whose launcher ends the others before they say it, too. Under torchrun the
    first rank says it, and no other.
    """
    is_first = speaker.is_first(launch)
    if not is_first and launch.rank:
        time.sleep(LATER)
    if is_first is False:
        sys.exit(2)
    where = f"rank {launch.rank} of {launch.size} on {socket.gethostname()}: " if launch.rank else ""
    print(f"flora-hpc: {where}{error}", file=sys.stderr, flush=True)
    time.sleep(0.5)  # an abort may overtake what was said
    mpilibrary.abort_early(launch, 2)
    sys.exit(2)


@contextmanager
def job_with_config(
    launch: Launch, load: Callable[[], Config], load_comm: Callable[[], CommConfig]
) -> Iterator[tuple[Communicator, Config]]:
    """Load the configuration on every rank, connect them, and settle its mistakes together.

    A rank that left because of its configuration, before MPI is initialised, would leave the others waiting there for ever; so it
    connects by what `load_comm` can still make out, and says there what is wrong.
    """
    config, problem = None, None
    try:
        config = load()
    except UserError as error:
        if launch.size == 1:
            raise
        problem = error

    def settled() -> Config:
        if config is None:
            raise UserError(str(problem))
        return config

    try:
        with job(launch, config.comm if config else load_comm()) as comm:
            yield comm, together(comm, settled)
    except UserError:
        if problem:
            raise AgreedError(str(problem)) from None
        raise
