"""Parts of the world that play points beside each other, and who gets the next point."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from flora_hpc import loop
from flora_hpc.comm import counters
from flora_hpc.comm.backends.serial import Serial
from flora_hpc.comm.communicator import AgreedError, Communicator
from flora_hpc.comm.stop import Stop


@contextmanager
def part_of(world: Communicator, num_ranks: int) -> Iterator[Communicator]:
    """The part of the world in which this rank plays.

    Each part has `num_ranks` ranks that follow each other, or more where ranks are left over. A smaller world is one part.
    """
    if num_ranks == 1:
        yield Serial()
        return
    num_parts = max(1, world.size // num_ranks)
    comm = world.split(world.rank * num_parts // world.size)
    try:
        yield comm
    finally:
        comm.close()


@dataclass(frozen=True)
class Dealer:
    """Deals points to the parts of the world, for the part `comm`."""

    world: Communicator
    comm: Communicator
    stop: Stop
    timeout_seconds: float

    def deal(self, numbers: Sequence[int], purpose: str) -> Iterator[int]:
        """The points out of `numbers` that this part plays, the same on all its ranks; each is dealt when the part asks for it.

        After a signal, no part gets another point. The parts of a world whose ranks cannot reach a counter take turns instead.
        """
        counter, end = self.counter(), self.world.split(0, patient=True)  # other parts may play for hours longer than this one
        leader = self.world.rank - self.comm.rank
        leaders = sorted({int(text) for text in self.world.allgather(str(leader).encode())})
        turns = range(leaders.index(leader), len(numbers), len(leaders))
        draws = counter.draw(purpose, 0, len(numbers)) if counter else iter(turns)
        while not self.stop.agreed(self.comm):
            number = np.array([next(draws, -1) if self.comm.rank == 0 else 0], np.int64)
            self.comm.broadcast(number)
            if number[0] < 0:
                break
            yield numbers[int(number[0])]
        else:
            if counter:
                counter.end(purpose, 0)
        end.barrier()  # rank 0, which has the counter, leaves last
        end.close()

    def counter(self) -> counters.Counters | None:
        """A counter for all parts; None where a rank cannot reach it."""
        try:
            return counters.share(self.world, self.timeout_seconds, loop.OPTIONAL_STORE_SECONDS)
        except AgreedError:
            return None
