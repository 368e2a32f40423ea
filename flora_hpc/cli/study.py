"""`flora-hpc study`: play a grid of runs, and read what came out."""

from typing import Any

import typer
from typer.core import TyperGroup

from flora_hpc.cli import _study_best, _study_report, _study_run, _study_show, _study_watch

DEFAULT = "run"  # the command of `flora-hpc study CONFIG`


class WithDefault(TyperGroup):
    """A group that takes other arguments than its commands as those of its command `run`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=WithDefault, no_args_is_help=True)
app.command("run")(_study_run.run)
app.command("show")(_study_show.show)
app.command("best")(_study_best.best)
app.command("report")(_study_report.report)
app.command("watch")(_study_watch.watch)


@app.callback()
def study() -> None:
    """Play a grid of runs in one allocation, and read what came out.

    flora-hpc study CONFIG client.lr=1e-4,1e-3 --seeds 5 --out DIR plays one; its options: flora-hpc study run --help
    """
