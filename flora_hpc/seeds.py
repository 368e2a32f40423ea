"""Random numbers that depend on their purpose, never on rank or order."""

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
LOW = np.uint64(2**32 - 1)
SHIFT = np.uint64(32)
MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)  # of Philox4x32
STRIDES = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)  # added to the key in each round
ROUNDS = 10


def generator(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """A separate generator for each (seed, purpose, indices), such as `generator(0, "partition")`.

    The same arguments give the same numbers on every rank and machine (NumPy's Philox, seeded through SeedSequence).
    """
    return np.random.Generator(np.random.Philox(_sequence(seed, purpose, indices)))


class Streams:
    """A generator for each client of one purpose, twenty times cheaper than `generator`: one Philox for all clients.

    The third word of Philox's counter is the client. A client's numbers depend only on seed, purpose and client. The streams of two
    clients are 2^128 numbers apart.
    """

    def __init__(self, seed: int, purpose: str) -> None:
        self._philox = np.random.Philox(key=_sequence(seed, purpose, ()).generate_state(2, np.uint64))
        self._generator = np.random.Generator(self._philox)
        state: Any = self._philox.state  # before the first number, so the buffer is empty
        self._counter = [0, 0, 0, 0]  # the third word is the client
        key = state["state"]["key"].tolist()
        # NumPy reads lists twice as fast as arrays
        self._start = state | {"state": {"counter": self._counter, "key": key}, "buffer": state["buffer"].tolist()}

    def of(self, client: int) -> np.random.Generator:
        """The client's generator, at its first number; valid until the next call of `of` or `raw`."""
        self._counter[2] = client
        self._philox.state = self._start
        return self._generator

    def raw(self, clients: npt.NDArray[np.int64], count: int) -> Words:
        """The first `count` random words of 64 bits of each of `clients` (n,) -> (n, count); the input of a client's generator."""
        philox, counter, start, words = self._philox, self._counter, self._start, []
        for client in clients.tolist():
            counter[2] = client
            philox.state = start
            words.append(philox.random_raw(count))
        return np.array(words, np.uint64).reshape(len(clients), count)


def words(seed: int, purpose: str, *indices: int, of: npt.NDArray[np.int64], count: int) -> Words:
    """`count` random numbers of 64 bits for each client in `of` (n,) int64 -> (n, count); see `generator` for the other arguments.

    A client's numbers depend only on the other arguments and the client, not on the other clients in `of` nor on `count`. One
    generator per client would cost more time than training a small client on a GPU. Here the client is part of the counter, and one
    call computes all clients (Philox4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

        counter = (block low, block high, client low, client high)     each 32 bits; one block gives two numbers of 64 bits
    """
    key = _sequence(seed, purpose, indices).generate_state(2, np.uint32).astype(np.uint64)
    clients = of.astype(np.uint64)[:, None]
    blocks = np.arange(-(-count // 2), dtype=np.uint64)
    counter = np.broadcast_arrays(blocks & LOW, blocks >> SHIFT, clients & LOW, clients >> SHIFT)
    a, b, c, d = philox(counter, key)
    return np.stack([a | b << SHIFT, c | d << SHIFT], axis=-1).reshape(len(of), -1)[:, :count]


def philox(counter: list[Words] | tuple[Words, ...], key: Words) -> tuple[Words, Words, Words, Words]:
    """Philox4x32-10: a counter of four 32-bit words and a key of two give four random 32-bit words, in uint64 of any shape."""
    a, b, c, d = counter
    for number in range(ROUNDS):
        first, second = ((part + np.uint64(number) * stride) & LOW for part, stride in zip(key, STRIDES, strict=True))
        left, right = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b, c, d = (right >> SHIFT) ^ b ^ first, right & LOW, (left >> SHIFT) ^ d ^ second, left & LOW
    return a, b, c, d


def _sequence(seed: int, purpose: str, indices: tuple[int, ...]) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, zlib.crc32(purpose.encode())], spawn_key=indices)
