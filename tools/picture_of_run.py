"""Draw the last view of a finished run as an SVG: python tools/picture_of_run.py RUN OUT.svg"""

import io
import sys
from dataclasses import fields
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI

from flora_hpc.observers.terminal import Terminal
from flora_hpc.records import hdf5file
from flora_hpc.records.facts import facts_of
from flora_hpc.records.known import RoundRecord, RunInfo
from flora_hpc.records.panel import heading


def main(run: Path, out: Path) -> None:
    attributes, tables = hdf5file.read(run)
    rounds = tables["rounds"]
    told = {field.name: attributes[field.name] for field in fields(RunInfo) if field.name in attributes}
    place = "~/.cache/flora_hpc/features/digits.safetensors"  # where it is by default, whoever draws this
    info = RunInfo(
        **told | {"versions": {}, "topology": tables["topology"], "num_rounds": int(rounds["round"].max()), "features": place}
    )
    passed = iter([0.0, *rounds["round_seconds"].cumsum()])  # the clock of the run, not of this replay
    quiet = Console(file=io.StringIO(), width=92, force_terminal=True)
    terminal = Terminal(Path("runs/demo"), quiet, lambda: now[0])
    now = [next(passed)]
    terminal.started(info)
    for row in rounds:
        now[0] = next(passed)
        terminal.round(RoundRecord(rounds[rounds["round"] == row["round"]], tables["ranks"], tables["clients"]))
    picture = Console(record=True, width=92, file=io.StringIO(), force_terminal=True)
    picture.print(heading(facts_of(info)), terminal.view(), sep="\n")
    terminal.ended(attributes["status"])
    picture.save_svg(str(out), title="mpiexec -n 2 flora-hpc run configs/quickstart.yaml", theme=MONOKAI)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
