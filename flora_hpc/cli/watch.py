"""`flora-hpc watch`: follow a run that another process or another node writes."""

import time
from collections.abc import Callable, Iterator
from typing import Annotated

import typer
from rich.console import Console, RenderableType
from rich.live import Live

from flora_hpc import screen
from flora_hpc.cli._args import Run, View, has_terminal
from flora_hpc.errors import UserError
from flora_hpc.records import views
from flora_hpc.records.follow import FollowedRun, Snapshot
from flora_hpc.records.panel import PanelData, heading, panel
from flora_hpc.records.sentences import describe
from flora_hpc.records.summary import summary

RESUMABLE = ("stopped", "interrupted", "failed")
CODES = {"finished": 0, "stopped": 75}  # others: 1


def watch(
    run: Run,
    view: Annotated[
        View, typer.Option(help="live view or one plain line a round; auto asks whether this is a terminal")
    ] = View.auto,
    every: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="between two looks at the file")] = 1.0,
    stay: Annotated[
        bool, typer.Option("--stay", help="stay when it was stopped, killed or failed, for a job that goes on with it")
    ] = False,
    give_up: Annotated[
        float,
        typer.Option(
            min=1,
            metavar="SECONDS",
            help="leave a run that writes nothing for so long, and for five of its longest rounds: it was killed "
            "(six times as long before its first trained round)",
        ),
    ] = 600.0,
) -> None:
    """Follow a run until it ends, from any node that sees its directory. The run does not notice.

    Waits for a run that has not begun, and goes on with one that is resumed.

    Exit codes: 0 finished, 75 stopped, else 1; after Ctrl-C, which does not end the run, 130.
    """
    screen.needs_reader()
    if (run / "study.yaml").exists():
        raise UserError(f"{run}: is a study; follow it with `flora-hpc study watch {run}`")
    live = view == View.live or (view == View.auto and has_terminal())
    console = Console(highlight=False, force_terminal=True if live else None)
    say = Printer(console)
    try:
        snapshots_of_run = snapshots(FollowedRun(run), say, every, None if stay else give_up)
        last = show_live(console, snapshots_of_run) if live else show_lines(say, snapshots_of_run)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    end = "given up" if last.status == "running" else last.status
    if len(last.rounds):
        description = describe(last.attributes, last.topology)
        console.print(summary(console, last.rounds, description, f"run {end}", f"in {run}"))
    if end == "given up":
        say(f"given up after {views.seconds(last.silent)} without a sign of life (--give-up SECONDS waits longer, --stay for ever)")
    raise typer.Exit(CODES.get(last.status, 1))


class Printer:
    """Prints a sentence once, however often it is called with that sentence in a row."""

    def __init__(self, console: Console) -> None:
        self._console, self._last = console, ""

    def __call__(self, sentence: str) -> None:
        if sentence and sentence != self._last:
            self._console.print(sentence, markup=False, soft_wrap=True)
        self._last = sentence


def snapshots(
    run: FollowedRun,
    say: Callable[[str], None],
    every: float,
    give_up: float | None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Snapshot]:
    """Poll the run until it ends or has been silent for `give_up` seconds; with None, until it has finished."""
    while True:
        snapshot = run.poll()
        if snapshot is None:
            say(f"waiting for {run.path}, which is not there yet (Ctrl-C leaves)")
        else:
            yield snapshot
            if snapshot.status == "finished":
                return
            if give_up is not None and (snapshot.status != "running" or snapshot.given_up(give_up)):
                return
        sleep(every)


def show_lines(say: Printer, states: Iterator[Snapshot]) -> Snapshot:
    """Print a line a round, starting with the last round in the file; returns the last snapshot."""
    last_shown, has_doubt = -1, False
    resumed_before: tuple[int, ...] | None = None
    for snapshot in states:
        numbers = snapshot.rounds["round"]
        if resumed_before is None:
            for name, value in describe(snapshot.attributes, snapshot.topology).items():
                say(f"{name}: {value}")
            last_shown = int(numbers.max(initial=0)) - 1
        elif snapshot.resumed != resumed_before:
            since = snapshot.resumed[len(resumed_before) :] or (-1,)  # two resumes between two polls, or another run
            say(f"goes on after round {since[-1]}" if since[-1] >= 0 else "starts over")
            last_shown = min(last_shown, *since)
        resumed_before = snapshot.resumed
        for row in snapshot.rounds[numbers > last_shown]:
            say(views.line(row, snapshot.num_rounds))
            last_shown = int(row["round"])
        if snapshot.doubt and not has_doubt:
            say(snapshot.doubt)
        has_doubt = bool(snapshot.doubt)
    return snapshot


def show_live(console: Console, states: Iterator[Snapshot]) -> Snapshot:
    """Show the panel of `run --view live`, redrawn with every snapshot; returns the last one."""
    snapshot = next(states)
    console.print(heading(describe(snapshot.attributes, snapshot.topology)))

    def draw() -> RenderableType:
        note = snapshot.doubt or (f"{snapshot.status}; it may go on (Ctrl-C leaves)" if snapshot.status in RESUMABLE else "")
        after, since = (snapshot.resumed or (-1,))[-1], snapshot.silent if snapshot.status == "running" else 0.0
        data = PanelData(snapshot.rounds, snapshot.num_rounds, after, since, None, note)
        return panel(data, *console.size)

    with Live(draw(), console=console, auto_refresh=False) as live:
        for snapshot in states:  # noqa: B007 -- `draw` uses it
            live.update(draw(), refresh=True)
    return snapshot
