"""How HDF5 stores the tables of run.h5: sizes of chunks, and compression of the rows of very many clients."""

from typing import Any

CHUNK_ROWS = 256
MANY_ROWS = 8192  # of a round
COMPRESSED = {"shuffle": True, "compression": "gzip", "compression_opts": 1}  # which every HDF5 library has built in


def of(table: str, rows_per_round: int) -> dict[str, Any]:
    """Options of h5py for a table; `rows_per_round` are those of /clients.

    A chunk that is not full is written anew in the next round. HDF5 cannot use its old place again, since readers may look there.
    So rows are compressed only where a round fills chunks.
    """
    if table == "clients" and rows_per_round >= MANY_ROWS:
        return {"chunks": (MANY_ROWS,), **COMPRESSED}
    return {"chunks": (CHUNK_ROWS,)}
