"""`flora-hpc bench all --out DIR`: every bench of one node, a JSON file each."""

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flora_hpc.cli._bench_page import columns, progress_printer
from flora_hpc.comm import launch
from flora_hpc.errors import UserError, reason
from flora_hpc.records.views import seconds

SHORT = {  # words behind `flora-hpc bench` -> what keeps it to a minute or so; --full leaves these out
    "step": ("--model", "flora-tiny"),
    "methods": ("--model", "flora-tiny", "--methods", "flora,fedlc"),
    "comm": (),
    "combines": ("--clients", "20", "--repeats", "1"),
    "round": ("--repeats", "1"),
    "against": (),
    "log": (),
    "features": ("--model", "flora-tiny"),
    "report": ("--repeats", "1"),
    "ranks": ("--clients", "100000", "--repeats", "1"),
    "scale": ("--repeats", "1"),
    "study": (),
    "cluster": ("--class", "T"),
}
NEEDED = {"cluster": ("--class", "T")}  # with --full, too


def all_(
    out: Annotated[Path, typer.Option(metavar="DIR", help="directory of the results, NAME.json each; made if it is not there")],
    only: Annotated[str | None, typer.Option(metavar="NAMES", help="some of the benches: step,comm", show_default=False)] = None,
    full: Annotated[
        bool, typer.Option("--full", help="their own defaults, ViT-B-32 included: an hour or more on a few cores")
    ] = False,
) -> None:
    """Run every bench of one node, one after the other, each in a process of its own. Results that are there are kept."""
    if (size := launch.detect().size) > 1:
        raise UserError(f"bench all: runs on one node and starts ranks itself, but the launcher started {size} of it; start one")
    names = names_of(only)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be made ({reason(error)}); choose another directory") from None
    progress = progress_printer()
    table, failed = columns(["bench", "result"], ["time"]), []
    for name in names:
        start = time.perf_counter()
        file = out / f"{name}.json"
        if file.exists():
            table.add_row(name, f"{file}, kept from before", "-")
            continue
        progress(f"bench {name}")
        code = measure(name, file, full)
        failed += [name] if code else []
        table.add_row(name, f"exit code {code}" if code else f"{file}", seconds(time.perf_counter() - start))
    Console(highlight=False).print(table)
    if failed:
        print(f"failed: {', '.join(failed)}; what they said stands above, and the same command repeats them")
        raise typer.Exit(1)


def names_of(only: str | None) -> list[str]:
    """The names of the benches. Raises UserError for an unknown one."""
    names = [word.strip() for word in only.split(",")] if only else [*SHORT]
    for name in names:
        if name not in SHORT:
            raise UserError(f"--only: there is no bench '{name}' of one node; take some of {', '.join(SHORT)}")
    return names


def measure(name: str, file: Path, full: bool) -> int:
    """Run one bench and keep its JSON, whole or not at all; its exit code.

    The cluster benchmark writes a directory, too. Until it is valid it lies beside, and the next try replaces it. Raises UserError
    where a directory of that name is there without the JSON: it may be another run.
    """
    words = [*(NEEDED.get(name, ()) if full else SHORT[name]), "--json"]
    folder, trial = file.with_suffix(""), file.with_suffix(".try")
    if name == "cluster":
        if folder.exists():
            raise UserError(f"{folder}: is there, but {file.name} is not; choose another --out, or move this directory away")
        if trial.exists():
            shutil.rmtree(trial)
        words += ["--out", str(trial)]
    command = [sys.executable, "-m", "flora_hpc", "bench", name, *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode == 0:
        part = file.with_suffix(".part")
        part.write_text(done.stdout, encoding="utf-8")
        if name == "cluster":
            trial.rename(folder)
        part.replace(file)
    return done.returncode
