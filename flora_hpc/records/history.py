"""The history of a run that is resumed."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from flora_hpc.records import clientrows
from flora_hpc.records.hdf5file import read
from flora_hpc.records.known import Earlier
from flora_hpc.records.schema import TABLES, WORST, Rows


def earlier(run: Path, last: int, logged: int, warnings: list[str]) -> Earlier:
    """The history of a run that resumes after round `last`: its rows up to round `logged`, the later ones will be written again.

    `warnings` say why newer checkpoints are not used. Raises UserError for a file that is not a run's.
    """
    attributes, tables = read(run, ("rounds", "ranks"))
    rows_of = {name: with_all_columns(rows[rows["round"] <= logged], TABLES[name]) for name, rows in tables.items()}
    resumed_after, extended_after = (json.loads(attributes.get(name, "[]")) for name in ("resumed_after", "extended_after"))
    extended_after += [last] if attributes["status"] == "finished" else []
    pieces = (with_all_columns(rows, TABLES["clients"]) for rows in clientrows.pieces(run, logged))
    return Earlier(
        **rows_of, clients=pieces, resumed_after=[*resumed_after, last], warnings=warnings, extended_after=extended_after
    )


def with_all_columns(rows: Rows, dtype: np.dtype[Any]) -> Rows:
    """Rows of a file of any version with the columns of `dtype`: what its version did not measure is NaN, -1 for a client, or 0."""
    result = np.zeros(len(rows), dtype)
    for name in dtype.names or ():
        if name in (rows.dtype.names or ()):
            result[name] = rows[name]
        elif dtype[name].kind == "f":
            result[name] = np.nan
        elif name in WORST:
            result[name] = -1
    return result
