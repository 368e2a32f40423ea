"""The command line: one file per command."""

import atexit
import gc
import os
import sys
from typing import Annotated, NoReturn

import typer

from flora_hpc import __version__, screen
from flora_hpc.cli import (
    _usage,
    bench,
    data,
    doctor,
    evaluate,
    export,
    init,
    list_,
    plan,
    predict,
    report,
    run,
    show,
    slurm,
    study,
    watch,
)
from flora_hpc.cli._job import prints_error
from flora_hpc.comm import launch
from flora_hpc.comm.communicator import AgreedError
from flora_hpc.errors import StoppedError, UserError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def print_version(requested: bool) -> None:
    """Print name and version, and exit."""
    if requested:
        print(f"flora-hpc {__version__}")
        raise typer.Exit


@app.callback()
def flora_hpc(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Simulate federated LoRA fine-tuning of vision-language models on HPC clusters."""


app.command()(init.init)
app.command()(run.run)
app.command()(plan.plan)
app.command()(predict.predict)
app.command()(doctor.doctor)
app.command("list")(list_.list_)
app.command()(show.show)
app.command()(watch.watch)
app.command()(report.report)
app.command()(slurm.slurm)
app.command()(evaluate.evaluate)
app.command()(export.export)
app.add_typer(study.app, name="study")
app.add_typer(data.app, name="data")
app.add_typer(bench.app, name="bench")


def main() -> NoReturn:
    """Run the command line.

    Exit codes: 0 done; 2 the user must change something; 75 stopped by a signal, can be resumed (EX_TEMPFAIL of sysexits.h); any
    other code is a bug or a lost rank. One rank prints a message of all ranks.
    """
    # without this, Python searches all of PyTorch's objects for garbage, several times, before the process ends
    atexit.register(gc.freeze)
    try:
        me = launch.detect()
    except UserError:
        me = launch.Launch()
    is_rank_0 = me.rank == 0
    screen.protect()
    if not is_rank_0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 -- for as long as the process lives
    try:
        result = app(standalone_mode=False)
        code = result if isinstance(result, int) else 0  # a command's typer.Exit(code)
        if is_rank_0 and (why := screen.unprinted()):
            raise UserError(
                f"standard output cannot be written ({why}); what was printed is incomplete: make room, and start again"
            )
    except screen.ReaderGoneError:
        code = 0
    except UserError as error:
        code = 2
        if prints_error(me, isinstance(error, AgreedError)):
            print(f"flora-hpc: {error}", file=sys.stderr, flush=True)
    except StoppedError as error:
        code = 75
        if is_rank_0:
            print(f"flora-hpc: {error}", file=sys.stderr, flush=True)
    except Exception as error:
        if not hasattr(error, "exit_code"):  # no error of click: a bug
            raise
        code = error.exit_code
        if prints_error(me):
            if text := _usage.sentence(error, sys.argv[1:]):
                print(f"flora-hpc: {text}", file=sys.stderr, flush=True)
            else:
                error.show()  # type: ignore[attr-defined]
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
