"""`flora-hpc watch`: follow a run that another process or another node writes."""

import time
from collections.abc import Callable, Iterator
from typing import Annotated

import typer
from rich.console import Console, RenderableType
from rich.live import Live

from flora_hpc import screen
from flora_hpc.cli._args import Run, View, has_terminal
from flora_hpc.records import views
from flora_hpc.records.follow import Followed, Snapshot
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
    live = view == View.live or (view == View.auto and has_terminal())
    console = Console(highlight=False, force_terminal=True if live else None)
    say = Sayer(console)
    try:
        seen = snapshots(Followed(run), say, every, None if stay else give_up)
        last = show_live(console, seen) if live else show_lines(say, seen)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    ended = "given up" if last.status == "running" else last.status
    if len(last.rounds):
        told = describe(last.attributes, last.topology)
        console.print(summary(console, last.rounds, told, f"run {ended}", f"in {run}"))
    if ended == "given up":
        say(f"given up after {views.seconds(last.silent)} without a sign of life (--give-up SECONDS waits longer, --stay for ever)")
    raise typer.Exit(CODES.get(last.status, 1))


class Sayer:
    """Says a sentence once, however often it is told in a row."""

    def __init__(self, console: Console) -> None:
        self._console, self._said = console, ""

    def __call__(self, sentence: str) -> None:
        if sentence and sentence != self._said:
            self._console.print(sentence, markup=False, soft_wrap=True)
        self._said = sentence


def snapshots(
    followed: Followed, say: Callable[[str], None], every: float, give_up: float | None, sleep: Callable[[float], None] = time.sleep
) -> Iterator[Snapshot]:
    """The run, again and again, until it ends or has been silent for `give_up` seconds; None stays until it has finished."""
    while True:
        look = followed.poll()
        if look is None:
            say(f"waiting for {followed.path}, which is not there yet (Ctrl-C leaves)")
        else:
            yield look
            if look.status == "finished":
                return
            if give_up is not None and (look.status != "running" or look.given_up(give_up)):
                return
        sleep(every)


def show_lines(say: Sayer, seen: Iterator[Snapshot]) -> Snapshot:
    """A line a round, from the last one that is there on; returns the last look."""
    shown, doubted = -1, False
    resumed: tuple[int, ...] | None = None
    for look in seen:
        numbers = look.rounds["round"]
        if resumed is None:
            for name, value in describe(look.attributes, look.topology).items():
                say(f"{name}: {value}")
            shown = int(numbers.max(initial=0)) - 1
        elif look.resumed != resumed:
            since = look.resumed[len(resumed) :] or (-1,)  # it may have gone on twice between two looks, or be another run
            say(f"goes on after round {since[-1]}" if since[-1] >= 0 else "starts over")
            shown = min(shown, *since)
        resumed = look.resumed
        for row in look.rounds[numbers > shown]:
            say(views.line(row, look.num_rounds))
            shown = int(row["round"])
        if look.doubt and not doubted:
            say(look.doubt)
        doubted = bool(look.doubt)
    return look


def show_live(console: Console, seen: Iterator[Snapshot]) -> Snapshot:
    """The panel that `run --view live` shows, drawn anew with every look; returns the last one."""
    look = next(seen)
    console.print(heading(describe(look.attributes, look.topology)))

    def drawn() -> RenderableType:
        note = look.doubt or (f"{look.status}; it may go on (Ctrl-C leaves)" if look.status in RESUMABLE else "")
        after, since = (look.resumed or (-1,))[-1], look.silent if look.status == "running" else 0.0
        known = PanelData(look.rounds, look.num_rounds, after, since, None, note)
        return panel(known, *console.size)

    with Live(drawn(), console=console, auto_refresh=False) as live:
        for look in seen:  # noqa: B007 -- `drawn` uses it
            live.update(drawn(), refresh=True)
    return look
