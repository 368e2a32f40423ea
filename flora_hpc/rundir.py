"""Name a new run directory, read an existing one, and check whether a run may start or resume there."""

import json
import os
import re
import shlex
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from flora_hpc import configfile, plugins
from flora_hpc.comm.communicator import AgreedError, Communicator, together
from flora_hpc.config import Config
from flora_hpc.errors import UserError
from flora_hpc.owner import living
from flora_hpc.owner.claim import Claim


def new(name: str, parent: Path = Path("runs")) -> Path:
    """A directory that does not exist yet, named after a configuration and the time."""
    job = f"-{os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""  # tasks of an array may start together
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}{job}"
    names = [stem, *(f"{stem}-{number}" for number in range(2, 1000))]
    return next(parent / name for name in names if not (parent / name).exists())


@dataclass(frozen=True)
class Contents:
    """The run in a run directory; neither unfinished nor finished for an empty directory."""

    unfinished: bool = False
    finished: bool = False
    idle: int = 0  # earlier starts of this job, in a row, that saved no new round


def refuse_used(out: Path) -> None:
    """Raise UserError when `out` cannot become a new run directory."""
    if any((out / name).exists() for name in ("run.h5", "config.yaml", "adapter", "checkpoint")):
        raise UserError(f"--out {out}: already holds a run; choose another directory, remove this one, or go on with --resume")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; choose a directory")


def unfinished(out: Path, config: Config) -> Contents:
    """The run of `config` in `out`. Raises UserError when `out` has another run, or a run that cannot be read."""
    if not (out / "run.h5").exists():
        if (out / "adapter").exists() or not (out.is_dir() or not out.exists()):
            raise UserError(f"--resume: {out} holds no run.h5 to go on with; choose another directory")
        return Contents()
    from flora_hpc.records import hdf5file

    attributes, tables = hdf5file.read(out, ())
    stored, _ = configfile.load(out / "config.yaml")
    if differing := configfile.differences(stored.essence(), config.essence()):
        changes = "; ".join(f"{key} was {old!r} and is {new!r}" for key, (old, new) in differing.items())
        raise UserError(f"--resume: the run in {out} is another one: {changes}; give it its own configuration, or another --out")
    played = max(int(tables["rounds"]["round"].max(initial=-1)), newest_saved(out))
    finished = attributes["status"] == "finished" and config.rounds == played
    if not finished and config.rounds <= played and config.rounds != stored.rounds:
        raise UserError(
            f"--resume: rounds: {config.rounds}, but the run in {out} has played {played}; "
            f"give more rounds, or {stored.rounds} as before"
        )
    return Contents(not finished, finished)


def newest_saved(out: Path) -> int:
    """The newest round with a checkpoint in a run directory, -1 for none."""
    matches = (re.fullmatch(r"round-(\d+)\.safetensors", file.name) for file in (out / "checkpoint").glob("round-*"))
    return max((int(match[1]) for match in matches if match), default=-1)


def enter(comm: Communicator, out: Path, config: Config, claim: Claim, resume: bool) -> tuple[Contents, Path]:
    """Claim `out` on rank 0 for a new run of `config`, or to resume its unfinished run.

    Returns, on every rank, what rank 0 found, and rank 0's directory: ranks that start in different seconds choose other names.
    Raises AgreedError, on every rank, where the run is not allowed.
    """
    contents = together(comm, lambda: _enter(out, config, claim, resume) if comm.rank == 0 else Contents())
    texts = comm.allgather(json.dumps([asdict(contents), str(out)]).encode())
    values, path = json.loads(texts[0])
    return Contents(**values), Path(path)


def _enter(out: Path, config: Config, claim: Claim, resume: bool) -> Contents:
    claim.take(lambda: newest_saved(out))
    if not resume:
        refuse_used(out)
    contents = unfinished(out, config) if resume else Contents()
    if not contents.finished:
        claim.require()
        end_of_chain(claim.owner.idle, 2)
    return replace(contents, idle=claim.owner.idle)


def end_of_chain(idle: int, most: int) -> None:
    """Raise UserError when `idle`, the starts of a job without a new round, reaches `most`: exit code 2 is not requeued."""
    if living.restarts() and idle >= most:
        raise AgreedError(
            "two starts of this Slurm job in a row saved no new round, so it is not queued again; give it a longer time limit "
            "(sbatch --time), or shorter rounds, and submit it anew"
        )


def check_plugins(out: Path, needs_algorithm: bool = True) -> None:
    """Raise UserError when the run in `out` used files of the user that are not named now, or have changed.

    The message gives their paths. Code from a run directory runs only after its user has named it. A finished adapter can be used
    without the algorithm, `needs_algorithm` False.
    """
    from flora_hpc.records import hdf5file

    try:
        attributes, _ = hdf5file.read(out, ())
    except UserError:  # run.h5 is missing or damaged, so the user's files are unknown
        return
    digests = json.loads(attributes.get("identity", "{}"))
    missing = {}
    for name, path in json.loads(attributes.get("plugins", "{}")).items():
        family, _, member = name.partition(" ")
        if family == "algorithm" and not needs_algorithm:
            continue
        part = plugins.own_part(f"{family}s", member)
        if part is None:
            missing[name] = path
        elif part.digest != digests.get(name, part.digest):
            file = f"{'--plugin ' * part.is_file}{part.source}"
            raise UserError(f"{file}: changed since the run in {out} began with it; put back what it was, or start a new run")
    if missing:
        files = " ".join(f"--plugin {shlex.quote(path)}" for path in sorted(set(missing.values())))
        raise UserError(
            f"{out}: was run with {', '.join(missing)} from files of its user; where they are yours to run, add {files}"
        )
