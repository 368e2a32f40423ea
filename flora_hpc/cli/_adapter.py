"""The round of a run's adapter."""

import json
import sys
from contextlib import suppress
from pathlib import Path

from flora_hpc.config import OPTIONAL
from flora_hpc.errors import UserError
from flora_hpc.records import hdf5file

FEDAVG = [
    "algorithm=fedavg",
    *(f"{part}=null" for part in OPTIONAL),
]  # a finished adapter needs no algorithm, which may be a user's own


def note_round(run: Path) -> None:
    """Print a note on standard error when a run has played more rounds than its adapter has."""
    with suppress(UserError):  # the adapter may be readable all the same
        attributes, tables = hdf5file.read(run, ())
        ends = json.loads(attributes.get("extended_after", "[]"))
        if ends and attributes["status"] != "finished":
            last = int(tables["rounds"]["round"].max(initial=-1))
            print(
                f"note: {run} has finished with {ends[-1]} rounds and was given more (now {attributes['status']}, after round "
                f"{last}); its adapter is still that of round {ends[-1]}",
                file=sys.stderr,
            )
