"""`flora-hpc study watch`: follow a study that other processes or other nodes play."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, RenderableType
from rich.live import Live

from flora_hpc import screen
from flora_hpc.cli._args import View, has_terminal
from flora_hpc.cli.watch import CODES, Printer
from flora_hpc.errors import UserError
from flora_hpc.records import views
from flora_hpc.records.followstudy import FollowedStudy, StudySnapshot
from flora_hpc.records.study import INDEX
from flora_hpc.records.studypanel import counts, lines, study_panel

LEFT = {"failed", "stopped"}  # statuses after which a study may go on


def watch(
    study: Annotated[Path, typer.Argument(metavar="DIR", help="directory of a study, or its study.h5")],
    view: Annotated[
        View, typer.Option(help="live table or one plain line a point that ends; auto asks whether this is a terminal")
    ] = View.auto,
    every: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="between two looks at the files")] = 1.0,
    stay: Annotated[
        bool, typer.Option("--stay", help="stay when it was stopped, killed or has failed points, for a job that goes on with it")
    ] = False,
    give_up: Annotated[
        float,
        typer.Option(
            min=1,
            metavar="SECONDS",
            help="leave a study that writes nothing for so long, and for five of the longest rounds of the points that run: "
            "it was killed (six times as long before the first trained round of a point)",
        ),
    ] = 600.0,
) -> None:
    """Follow a study until no point runs or waits, from any node that sees its directory. The study does not notice.

    Waits for a study that has not begun, and goes on with one that is resumed.

    Exit codes: 0 all points finished, 75 stopped, else 1; after Ctrl-C, which does not end the study, 130.
    """
    screen.needs_reader()
    if (study / "run.h5").exists():
        raise UserError(f"{study}: is a run; follow it with `flora-hpc watch {study}`")
    live = view == View.live or (view == View.auto and has_terminal())
    console = Console(highlight=False, force_terminal=True if live else None)
    say = Printer(console)
    try:
        states = snapshots(FollowedStudy(study), say, every, None if stay else give_up)
        last = show_live(console, states) if live else show_lines(say, states)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if last.status in ("waiting", "running"):
        say(f"given up after {views.seconds(last.silent)} without a sign of life (--give-up SECONDS waits longer, --stay for ever)")
    say(f"study {last.status if last.status in CODES or last.status in LEFT else 'given up'}, {counts(last)}; in {last.folder}")
    raise typer.Exit(CODES.get(last.status, 1))


def snapshots(
    study: FollowedStudy,
    say: Callable[[str], None],
    every: float,
    give_up: float | None,
    sleep: Callable[[float], object] = time.sleep,
) -> Iterator[StudySnapshot]:
    """Poll the study until it ends or has been silent for `give_up` seconds; with None, until all points have finished."""
    while True:
        snapshot = study.poll()
        if snapshot is None:
            say(f"waiting for {study.folder / INDEX}, which is not there yet (Ctrl-C leaves)")
        else:
            yield snapshot
            if snapshot.status == "finished":
                return
            if give_up is not None and (snapshot.status in LEFT or snapshot.given_up(give_up)):
                return
        sleep(every)


def show_lines(say: Callable[[str], None], states: Iterator[StudySnapshot]) -> StudySnapshot:
    """Print how far the study is, its failed points, then a line for each point that ends; returns the last snapshot."""
    is_first, has_doubt = True, False
    for snapshot in states:
        if is_first:
            say(counts(snapshot))
        for point, sentence in zip(snapshot.ended, lines(snapshot), strict=True):
            if not is_first or point.status == "failed":
                say(sentence)
        if snapshot.doubt and not has_doubt:
            say(snapshot.doubt)
        is_first, has_doubt = False, bool(snapshot.doubt)
    return snapshot


def show_live(console: Console, states: Iterator[StudySnapshot]) -> StudySnapshot:
    """Show the panel, redrawn with every snapshot; returns the last one."""
    snapshot = next(states)

    def draw() -> RenderableType:
        note = f"{snapshot.status}; it may go on (Ctrl-C leaves)" if snapshot.status in LEFT else ""
        return study_panel(snapshot, *console.size, note)

    with Live(draw(), console=console, auto_refresh=False) as live:
        for snapshot in states:  # noqa: B007 -- `draw` uses it
            live.update(draw(), refresh=True)
    return snapshot
