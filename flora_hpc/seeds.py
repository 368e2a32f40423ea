"""Random numbers that depend on what they are for, never on rank or order."""

import zlib

import numpy as np


def generator(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """A generator of its own for (seed, purpose, indices), such as `generator(0, "batches", round, client)`.

    The same arguments give the same numbers on every rank and machine (NumPy's Philox, seeded through SeedSequence).
    """
    sequence = np.random.SeedSequence([seed, zlib.crc32(purpose.encode())], spawn_key=indices)
    return np.random.Generator(np.random.Philox(sequence))
