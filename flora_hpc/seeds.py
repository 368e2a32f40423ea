"""Random numbers that depend on their purpose, never on rank or order."""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint32]
LOW = np.uint64(2**32 - 1)
SHIFT = np.uint64(32)
MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)  # of Philox4x32
STRIDES = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)  # added to the key in each round
ROUNDS = 10
BLOCK = 2**13  # clients whose random numbers are made at once: their words stay in the cache, which takes a third of the time
HALF_ROUNDS = 8  # of a permutation; three mix both halves


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
    blocks = np.arange(-(-count // 2), dtype=np.uint64)
    result = np.empty((len(of), len(blocks), 2), np.uint64)
    step = max(1, BLOCK // max(1, len(blocks)))
    for first in range(0, len(of), step):
        clients = of[first : first + step].astype(np.uint64)[:, None]
        counter = np.broadcast_arrays(blocks & LOW, blocks >> SHIFT, clients & LOW, clients >> SHIFT)
        a, b, c, d = philox(counter, key)
        result[first : first + step, :, 0], result[first : first + step, :, 1] = a | b << SHIFT, c | d << SHIFT
    return result.reshape(len(of), 2 * len(blocks))[:, :count]


def uniforms(seed: int, purpose: str, *indices: int, of: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """A random number from 0 to 1, which is left out, for each client in `of` (n,): the upper 53 bits of its first word."""
    return (words(seed, purpose, *indices, of=of, count=1)[:, 0] >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permuted(seed: int, purpose: str, *indices: int, of: Ints, among: int) -> Ints:
    """The numbers (n,) at the places `of` (n,) of a random order of 0..among-1; see `generator` for the other arguments.

    Each place is computed alone, so memory and time do not grow with `among`. It is a Feistel network: the bits of a place are two
    halves, and in turn each is xored with a hash (Murmur3's) of the other one and a key. This maps 0..2^bits-1 one to one. A result
    that is not below `among` goes through again (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).
    """
    keys = _sequence(seed, purpose, indices).generate_state(HALF_ROUNDS, np.uint32).astype(np.uint32)
    bits = max(2, (among - 1).bit_length())
    lengths = bits // 2, bits - bits // 2  # of the lower and the upper half
    tabled = len(of) > HALF_ROUNDS << lengths[1]  # a hash of every half takes less than one of every place
    tables = (
        [_hash(np.arange(1 << lengths[1 - number % 2], dtype=np.uint32), key) for number, key in enumerate(keys)] if tabled else []
    )
    result = np.empty(len(of), np.int64)
    for first in range(0, len(of), BLOCK):
        values = _mixed(of[first : first + BLOCK], lengths, keys, tables)
        while len(outside := np.flatnonzero(values >= among)):
            values[outside] = _mixed(values[outside], lengths, keys, tables)
        result[first : first + BLOCK] = values
    return result


def _mixed(values: Ints, lengths: tuple[int, int], keys: Keys, tables: Sequence[Keys]) -> Ints:
    """One pass of `permuted` over `values` (n,); `tables` have the hashes of all halves, if any."""
    masks = [np.uint32((1 << length) - 1) for length in lengths]
    halves = [(values & int(masks[0])).astype(np.uint32), (values >> lengths[0]).astype(np.uint32)]
    for number, key in enumerate(keys):
        target, other = number % 2, halves[1 - number % 2]
        hashed = tables[number].take(other) if tables else _hash(other, key)
        hashed &= masks[target]
        halves[target] ^= hashed
    return halves[0].astype(np.int64) | halves[1].astype(np.int64) << lengths[0]


def _hash(half: Keys, key: np.uint32) -> Keys:
    """Murmur3's last steps, of `half` (n,) uint32 and a key."""
    hashed = half ^ key
    hashed ^= hashed >> np.uint32(16)
    hashed *= np.uint32(0x85EBCA6B)
    hashed ^= hashed >> np.uint32(13)
    hashed *= np.uint32(0xC2B2AE35)
    hashed ^= hashed >> np.uint32(16)
    return hashed


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
