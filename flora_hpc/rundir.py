"""A run directory: how a new one is named, what one holds, and whether a run may begin or go on there."""

import json
import os
import re
import shlex
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from flora_hpc import configfile, plugins
from flora_hpc.comm.communicator import Communicator
from flora_hpc.config import Config
from flora_hpc.errors import UserError
from flora_hpc.owner.claim import Claim


def new(name: str, parent: Path = Path("runs")) -> Path:
    """A directory that is not there yet, named after a configuration and the time."""
    job = f"-{os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""  # tasks of an array may start together
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}{job}"
    names = [stem, *(f"{stem}-{number}" for number in range(2, 1000))]
    return next(parent / name for name in names if not (parent / name).exists())


@dataclass(frozen=True)
class Found:
    """What a run directory holds."""

    unfinished: bool = False
    finished: bool = False
    idle: int = 0  # earlier starts of this job, in a row, that saved no new round


def refuse_used(out: Path) -> None:
    """Raise UserError when `out` cannot become a new run directory."""
    if any((out / name).exists() for name in ("run.h5", "config.yaml", "adapter", "checkpoint")):
        raise UserError(f"--out {out}: already holds a run; choose another directory, remove this one, or go on with --resume")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; choose a directory")


def unfinished(out: Path, config: Config) -> Found:
    """What `out` holds of a run of `config`. Raises UserError when it holds another one, or none that can be read."""
    if not (out / "run.h5").exists():
        if (out / "adapter").exists() or not (out.is_dir() or not out.exists()):
            raise UserError(f"--resume: {out} holds no run.h5 to go on with; choose another directory")
        return Found()
    from flora_hpc.records import hdf5file

    attributes, tables = hdf5file.read(out, ())
    stored, _ = configfile.load(out / "config.yaml")
    if differing := configfile.differences(stored.essence(), config.essence()):
        told = "; ".join(f"{key} was {old!r} and is {new!r}" for key, (old, new) in differing.items())
        raise UserError(f"--resume: the run in {out} is another one: {told}; give it its own configuration, or another --out")
    played = max(int(tables["rounds"]["round"].max(initial=-1)), newest_saved(out))
    finished = attributes["status"] == "finished" and config.rounds == played
    if not finished and config.rounds <= played and config.rounds != stored.rounds:
        raise UserError(
            f"--resume: rounds: {config.rounds}, but the run in {out} has played {played}; "
            f"give more rounds, or {stored.rounds} as before"
        )
    return Found(not finished, finished)


def newest_saved(out: Path) -> int:
    """The newest round of a run directory that has a checkpoint, -1 for none."""
    names = (re.fullmatch(r"round-(\d+)\.safetensors", file.name) for file in (out / "checkpoint").glob("round-*"))
    return max((int(name[1]) for name in names if name), default=-1)


def enter(out: Path, config: Config, claim: Claim, resume: bool) -> Found:
    """Take `out` for a run of `config`, a new one or the unfinished one that it holds. Raises UserError where that may not be."""
    claim.take(lambda: newest_saved(out))
    if not resume:
        refuse_used(out)
    found = unfinished(out, config) if resume else Found()
    if not found.finished:
        claim.require()
    return replace(found, idle=claim.owner.idle)


def check_plugins(out: Path) -> None:
    """Raise UserError when the run in `out` used files of the user's own that were not named now, or are other ones now.

    Their paths are only told: code from a run directory runs when its user says so, and not before.
    """
    from flora_hpc.records import hdf5file

    try:
        attributes, _ = hdf5file.read(out, ())
    except UserError:  # there is none yet, or it is damaged: nothing is known of files
        return
    digests = json.loads(attributes.get("identity", "{}"))
    absent = {}
    for name, path in json.loads(attributes.get("plugins", "{}")).items():
        family, _, member = name.partition(" ")
        part = plugins.own_part(f"{family}s", member)
        if part is None:
            absent[name] = path
        elif part.digest != digests.get(name, part.digest):
            raise UserError(f"--plugin {part.source}: changed since the run in {out} began with it; put back what it was")
    if absent:
        files = " ".join(f"--plugin {shlex.quote(path)}" for path in sorted(set(absent.values())))
        raise UserError(f"{out}: was run with {', '.join(absent)} from files of its user; where they are yours to run, add {files}")


def agree(comm: Communicator, found: Found, out: Path) -> tuple[Found, Path]:
    """What rank 0 found, and where, on every rank: ranks that start in different seconds would name it otherwise."""
    texts = comm.allgather(json.dumps([asdict(found), str(out)]).encode())
    facts, place = json.loads(texts[0])
    return Found(**facts), Path(place)
