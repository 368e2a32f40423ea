"""Which round the adapter of a run belongs to."""

import json
import sys
from contextlib import suppress
from pathlib import Path

from flora_hpc.errors import UserError
from flora_hpc.records import hdf5file


def note_round(run: Path) -> None:
    """Say on standard error that a run plays more rounds than its adapter has seen, if it does."""
    with suppress(UserError):  # what an adapter needs may be readable even so
        attributes, tables = hdf5file.read(run, ())
        extended = json.loads(attributes.get("extended_after", "[]"))
        if extended and attributes["status"] != "finished":
            last = int(tables["rounds"]["round"].max(initial=-1))
            print(
                f"note: {run} has finished with {extended[-1]} rounds and was given more (now {attributes['status']}, after round "
                f"{last}); its adapter is still that of round {extended[-1]}",
                file=sys.stderr,
            )
