"""`many_runs.py FOLDER SHARE RUNS [ENDS]` plays many runs in one process, on all ranks of its launcher; a run in FOLDER resumes.

SHARE is `yes` or `no`: whether runs share model, data and features. RUNS and ENDS are JSON. RUNS: name of a run -> its options.
ENDS: name of a run -> signal, rank and round: the rank gets the signal while it trains in this round.
"""

import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import flora_hpc
from flora_hpc import round as rounds
from flora_hpc.errors import StoppedError

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
Ends = Mapping[str, tuple[str, int, int]]
train = rounds.train_my_groups


def play(folder: Path, share: bool, runs: dict[str, dict[str, Any]], ends: Ends = MappingProxyType({})) -> None:
    """Play the runs one after another, each in a folder with its name."""
    shared = flora_hpc.Shared() if share else None
    for name, options in runs.items():
        rounds.train_my_groups = ending(*ends[name]) if name in ends else train
        with suppress(StoppedError):
            flora_hpc.run(QUICKSTART, out=folder / name, shared=shared, resume=True, **options)


def ending(name: str, rank: int, at: int):  # type: ignore[no-untyped-def]
    """Training in which a rank gets a signal in one round."""

    def train_and_get_a_signal(setup, site, state, number):  # type: ignore[no-untyped-def]
        if (site.comm.rank, number) == (rank, at):
            os.kill(os.getpid(), signal.Signals[name])
        return train(setup, site, state, number)

    return train_and_get_a_signal


if __name__ == "__main__":
    play(Path(sys.argv[1]), sys.argv[2] == "yes", *map(json.loads, sys.argv[3:]))
