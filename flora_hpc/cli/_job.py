"""Run a command as a job on several ranks: when one rank fails, the whole job ends with one message."""

import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NoReturn, Protocol, TypeVar

from flora_hpc.comm import mpilibrary, speaker
from flora_hpc.comm.communicator import AgreedError, Communicator, connect, together
from flora_hpc.comm.launch import Launch
from flora_hpc.config import CommConfig
from flora_hpc.errors import UserError
from flora_hpc.job import guarded


class HasComm(Protocol):
    """A configuration, or something else that says how ranks communicate."""

    @property
    def comm(self) -> CommConfig: ...


C = TypeVar("C", bound=HasComm)
AGREED_SECONDS = 0.5  # within which all ranks learn of a mistake in the same collective
GRACE_SECONDS = 5.0  # that silent ranks wait: with the first exit a launcher may end all ranks, also the rank that prints


@contextmanager
def job(launch: Launch, config: CommConfig) -> Iterator[Communicator]:
    """Connect the ranks. An error on one rank ends the whole job at once, with that rank's message.

    Otherwise the other ranks would wait for this rank in their next collective, or in MPI_Finalize.
    """
    with ExitStack() as connected:
        try:
            comm = connected.enter_context(connect(launch, config))
        except UserError as error:
            if launch.size == 1:
                raise
            exit_unconnected(launch, error)
        with guarded(comm):
            yield comm


def prints_error(launch: Launch, agreed: bool = False) -> bool:
    """Whether this rank prints a mistake that all ranks make: the first rank to ask under torchrun, otherwise rank 0.

    The other ranks wait here, where the launcher ends all ranks with the first exit. When torchrun's store does not answer, a rank
    that survives the wait prints the message, too: better twice than never. With `agreed`, all ranks learned of the mistake in the
    same collective.
    """
    is_first = speaker.is_first(launch)
    if is_first or (is_first is None and launch.rank == 0):
        return True
    if launch.launcher in ("slurm", "torchrun"):
        time.sleep(AGREED_SECONDS if agreed else GRACE_SECONDS)
    return is_first is None and launch.launcher == "torchrun" and not agreed


def exit_unconnected(launch: Launch, error: UserError) -> NoReturn:
    """Exit a rank that cannot connect, and end the other ranks, which may have no error and wait for this rank.

    Rank 0 prints a mistake of all ranks, and its launcher then ends the other ranks before they print. Under torchrun only the
    first rank to ask prints.
    """
    is_first = speaker.is_first(launch)
    if not is_first and launch.rank:
        time.sleep(GRACE_SECONDS)
    if is_first is False:
        sys.exit(2)
    where = f"rank {launch.rank} of {launch.size} on {socket.gethostname()}: " if launch.rank else ""
    print(f"flora-hpc: {where}{error}", file=sys.stderr, flush=True)
    time.sleep(0.5)  # an abort may overtake the message
    mpilibrary.abort_early(launch, 2)
    sys.exit(2)


@contextmanager
def job_with_config(launch: Launch, load: Callable[[], C], load_comm: Callable[[], CommConfig]) -> Iterator[tuple[Communicator, C]]:
    """Load the configuration on every rank, connect the ranks, and report mistakes of the configuration on all ranks.

        load() fails  ->  connect with load_comm()  ->  all ranks raise the same AgreedError

    If a rank exited before MPI is initialised, the other ranks would wait for ever. So a rank with a wrong configuration connects,
    too: `load_comm` reads as much of the section `comm` as it can.
    """
    config, mistake = None, None
    try:
        config = load()
    except UserError as error:
        if launch.size == 1:
            raise
        mistake = error

    def config_or_mistake() -> C:
        if config is None:
            raise UserError(str(mistake))
        return config

    try:
        with job(launch, config.comm if config else load_comm()) as comm:
            yield comm, together(comm, config_or_mistake)
    except UserError:
        if mistake:
            raise AgreedError(str(mistake)) from None
        raise
