"""Which rows of /clients a run keeps."""

from dataclasses import replace

import numpy as np

from flora_hpc import seeds
from flora_hpc.records.known import RoundRecord
from flora_hpc.records.schema import Rows


def recorded(record: RoundRecord, seed: int, most: int | None) -> RoundRecord:
    """The record with rows of at most `most` clients, None for all. Its sums are still those of all clients."""
    return record if most is None else replace(record, clients=sample(record.clients, seed, int(record.row["round"][0]), most))


def sample(clients: Rows, seed: int, number: int, most: int) -> Rows:
    """Draw `most` rows of a round's `clients` (n,), which stay in their order; the number of ranks has no part in it."""
    if len(clients) <= most:
        return clients
    words = seeds.words(seed, "records", number, of=clients["client"], count=1)[:, 0]
    return clients[np.sort(np.argsort(words, kind="stable")[:most])]
