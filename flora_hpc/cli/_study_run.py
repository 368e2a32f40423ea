"""`flora-hpc study CONFIG key=a,b`: play every point of a grid, under any launcher."""

import os
import re
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from flora_hpc import rundir, screen
from flora_hpc.cli._args import Overrides, Plugins, View, has_terminal, use_plugins
from flora_hpc.cli._job import job_with_config
from flora_hpc.cli._progress import Bar
from flora_hpc.cli._study_view import watching
from flora_hpc.comm import launch, stop
from flora_hpc.comm.communicator import Communicator, send_to_all, together
from flora_hpc.comm.launch import Launch
from flora_hpc.config import CommConfig
from flora_hpc.configfile import load_comm
from flora_hpc.configtree import read_all
from flora_hpc.errors import UserError
from flora_hpc.owner.claim import Claim, living_owner
from flora_hpc.records import study, views
from flora_hpc.records.study import Point
from flora_hpc.studies import points
from flora_hpc.studies.points import Recipe

LOADING = "loading PyTorch, models and data ..."
WHOLE = (0, 1)  # the only shard of a study that is played as one
SHARDS = "shards"  # in the directory of a study: the owners of its shards
MOST_FAILED = 20  # messages of failed points in the last lines


@dataclass(frozen=True)
class Source:
    """Where a study comes from: a configuration with values on top, or the directory of a study."""

    config: Path | None
    sweeps: tuple[str, ...]
    overrides: tuple[str, ...]
    seeds: int | None
    plugins: tuple[Path, ...]
    out: Path
    resume: bool

    def recipe(self) -> Recipe:
        """Read the study. Raises UserError for mistakes."""
        if self.config is None:
            if not self.resume:
                raise UserError("study: give a CONFIG and values such as client.lr=1e-4,1e-3, or --resume with --out")
            foreign = [text for text in self.overrides if not text.strip().startswith("comm.")]
            if self.sweeps or foreign or self.seeds is not None:
                raise UserError(
                    "--resume: goes on with the study as it is, and -s may set keys of comm alone; to add points, give its CONFIG "
                    "and the whole grid again"
                )
            points.refuse_missing_plugins(self.out, self.plugins)
            use_plugins(list(self.plugins))
            return points.read(self.out, self.overrides)
        use_plugins(list(self.plugins))
        tree, origin = read_all(self.config)
        files = [str(path.absolute()) for path in self.plugins]
        recipe = points.make(tree, origin, self.config.name, self.sweeps, self.seeds, self.overrides, files)
        if self.resume and (self.out / study.RECIPE).exists():
            points.refuse_lost(points.read(self.out), recipe, self.out)
        return recipe

    def comm(self) -> CommConfig:
        """The section `comm`, also of a configuration with mistakes."""
        return load_comm(self.config, list(self.overrides)) if self.config else CommConfig()


def run(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="CONFIG KEY=VALUE,VALUE...", help="YAML file, and the values of the grid", show_default=False),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="repeat every setting with N seeds, from that of CONFIG on", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="directory; by default studies/<config name>-<time>", show_default=False)
    ] = None,
    overrides: Overrides = None,
    plugin: Plugins = None,
    ranks_per_run: Annotated[int, typer.Option(min=1, metavar="N", help="ranks that play a point together")] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with the study in --out, or add the points of a larger grid; finished ones stay")
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="play only the points I, I+N, I+2N, ... of all, for job arrays", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="list the points with their forecasts, and play nothing")] = False,
    prepare: Annotated[bool, typer.Option("--prepare", help="write the study's directory, and play nothing")] = False,
    view: Annotated[
        View, typer.Option(help="live table or one plain line a point that ends; auto asks whether this is a terminal")
    ] = View.auto,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="say only what is wrong, and one line at the end")] = False,
) -> None:
    """Play every combination of the grid's values. Start it with srun, mpiexec or torchrun, or alone.

    SIGUSR1 and SIGTERM save every run and end the study with exit code 75; --resume goes on, on any number of ranks. A point that
    fails does not end the others; the exit code is then 1.
    """
    stop.note_early()
    screen.beside_work()
    me = launch.detect()
    source = source_of(words or [], overrides, seeds, plugin, out, resume)
    way = Way(ranks_per_run, _shard(shard), view, quiet)

    def say(sentence: str) -> None:
        if me.rank == 0 and not quiet:
            print(f"note: {sentence}", flush=True)

    if me.rank == 0 and not quiet:
        print(LOADING, flush=True)
    with Claim(claimed(source.out, way.shard), say) as claim, job_with_config(me, source.recipe, source.comm) as (comm, recipe):
        for sentence in recipe.notes:
            say(sentence)
        folder = Path(os.fsdecode(send_to_all(comm, os.fsencode(source.out))))  # clocks of ranks may name different directories
        if dry_run:
            show_forecasts(recipe, comm, ranks_per_run)
            return
        together(comm, lambda: begin(recipe, folder, way.shard, claim, resume) if comm.rank == 0 else None)
        if prepare:
            print(f"{folder}: {views.count(len(recipe.planned), 'point')}; `flora-hpc study --resume --out {folder}` plays them")
            return
        rows = play(recipe, comm, me, claim, way, folder)
        stop.ignore()
    if comm.rank == 0:
        tell_end(rows, folder)


def source_of(
    words: list[str], overrides: list[str] | None, seeds: int | None, plugin: list[Path] | None, out: Path | None, resume: bool
) -> Source:
    """Where the study comes from, by the arguments of the command. Raises UserError where they contradict each other."""
    files, sweeps = [word for word in words if "=" not in word], tuple(word for word in words if "=" in word)
    if len(files) > 1:
        raise UserError(f"study: {files[1]}: is a second CONFIG; give one, and values such as client.lr=1e-4,1e-3")
    if resume and out is None:
        raise UserError("--resume: which study? name its directory with --out")
    config = Path(files[0]) if files else None
    folder = out or rundir.new(config.stem if config else "study", Path("studies"))
    return Source(config, sweeps, tuple(overrides or ()), seeds, tuple(plugin or ()), folder, resume)


def _shard(text: str | None) -> tuple[int, int]:
    """The numbers of --shard. Raises UserError for other texts."""
    match = re.fullmatch(r"(\d+)/([1-9]\d*)", text or "0/1")
    if match is None or int(match[1]) >= int(match[2]):
        raise UserError(f"--shard {text}: give I/N, such as 0/4, 1/4, 2/4 and 3/4 for the four parts of a study")
    return int(match[1]), int(match[2])


def claimed(out: Path, shard: tuple[int, int]) -> Path:
    """The directory that a player of the study, or of a shard of it, owns."""
    return out if shard == WHOLE else out / SHARDS / f"{shard[0]}-of-{shard[1]}"


def refuse_others(out: Path, shard: tuple[int, int]) -> None:
    """Raise UserError where other points of the study, or the same ones, are played: by the whole study, or by other shards.

    Shards of one cut (0/4, 1/4, ...) may be played at the same time.
    """
    shards = [folder for folder in out.glob(f"{SHARDS}/*") if shard == WHOLE or not folder.name.endswith(f"-of-{shard[1]}")]
    for folder in shards if shard == WHOLE else [out, *shards]:
        if owner := living_owner(folder):
            what = "the whole study" if folder == out else f"shard {folder.name.replace('-of-', '/')} of this study"
            raise UserError(f"--out {out}: {owner} plays {what}; wait for its end, or stop it")


def begin(recipe: Recipe, out: Path, shard: tuple[int, int], claim: Claim, resume: bool) -> None:
    """Claim the directory on rank 0, and write the files of the study. Raises UserError where it is another one's."""
    from flora_hpc.studies import play as player

    if not resume and (out / study.RECIPE).exists():
        raise UserError(f"--out {out}: already holds a study; go on with --resume, or choose another directory")
    if not resume:
        rundir.refuse_used(out)
    claim.take(lambda: sum(1 for _ in out.glob(f"{study.FOLDER}/*/{study.ROW}")))
    claim.require()
    refuse_others(out, shard)  # after the claim, so that of two starts one sees the other
    claim.started(None)
    if (out / study.RECIPE).exists():
        points.begin_changed_anew(out, recipe)
    player.prepare(recipe, out)


@dataclass(frozen=True)
class Way:
    """How a study is played and shown."""

    ranks_per_run: int
    shard: tuple[int, int]
    view: View
    quiet: bool


def play(recipe: Recipe, comm: Communicator, me: Launch, claim: Claim, way: Way, out: Path) -> list[Point]:
    """Play the study in the directory `out`; returns the points, on rank 0."""
    from flora_hpc.studies import play as player

    live = not way.quiet and (way.view == View.live or (way.view == View.auto and has_terminal() and me.launcher != "openmpi"))
    options = player.StudyOptions(
        out,
        way.ranks_per_run,
        way.shard,
        say=lambda sentence: print(f"note: {sentence}", file=sys.stderr, flush=True),  # from the first rank of each part
        progress=(lambda done, total: None) if way.quiet or live else Bar("features", live=False),
        check_ownership=claim.check,
    )
    shown = watching(out, live) if comm.rank == 0 and not way.quiet else nullcontext()
    try:
        with options.stop.listening(), shown:
            return player.play(recipe, comm, me, options)
    except KeyboardInterrupt:
        if comm.rank == 0:
            print(f"flora-hpc: interrupted; --resume --out {out} goes on after the last checkpoints", file=sys.stderr, flush=True)
        raise


def show_forecasts(recipe: Recipe, comm: Communicator, ranks_per_run: int) -> None:
    """Print a row a point: clients, memory, and the least time that its products take on a core of this machine."""
    from flora_hpc.studies import costs

    forecasts = costs.forecast_all(recipe.planned, comm, ranks_per_run, costs.memory_of_rank(comm))
    if comm.rank:
        return
    rate = costs.core_rate()
    table = Table(box=None, pad_edge=False, header_style="bold")
    problems = []
    for name in ("point", "clients", "memory of a rank", "training, at least"):
        table.add_column(name, justify="left" if name == "point" else "right", overflow="fold")
    for item, cost in zip(recipe.planned, forecasts, strict=True):
        numbers = (f"{cost.num_clients:,}", decimal(cost.memory_bytes), views.seconds(cost.flops / rate))
        table.add_row(item.point.name, *(("-", "-", "-") if cost.problem else numbers))
        if problem := cost.problem or cost.unfit:
            problems.append(f"would fail: {item.point.name}: {problem}")
    console = Console(highlight=False)
    console.print(table, soft_wrap=not console.is_terminal)  # a pipe gets whole names
    for problem in problems:
        console.print(problem, markup=False, soft_wrap=True)
    total = sum(cost.flops for cost in forecasts) / rate
    console.print(
        f"{views.count(len(forecasts), 'point')}; the products of training take {views.seconds(total)} on one core of this "
        "machine. Start, tests and small tensors come on top: points of small models take several times as long",
        soft_wrap=True,
    )


def tell_end(rows: list[Point], out: Path) -> None:
    """Print what became of the points; exit with code 1 where some failed."""
    failed: dict[str, list[str]] = {}  # message -> points
    for row in rows:
        if row.status == "failed":
            failed.setdefault(row.message, []).append(row.name)
    for message, (first, *others) in list(failed.items())[:MOST_FAILED]:
        also = f" and {views.count(len(others), 'other point')}" if others else ""
        print(f"failed: {first}{also}: {message}")
    if len(failed) > MOST_FAILED:
        print(f"... and {len(failed) - MOST_FAILED:,} other messages; `flora-hpc study show {out}` lists them")
    finished = sum(row.status == "finished" for row in rows)
    print(f"{finished:,} of {views.count(len(rows), 'point')} finished in {out}; `flora-hpc study show {out}` shows the results")
    if finished < len(rows):
        raise typer.Exit(1)
