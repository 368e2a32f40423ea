"""`flora-hpc evaluate`: the accuracy of a finished run's adapter, on the run's dataset or any other."""

import json
from pathlib import Path
from typing import Annotated

import typer

from flora_hpc import configfile, rundir
from flora_hpc.cli._adapter import FEDAVG, note_round
from flora_hpc.cli._args import Overrides, Plugins, Run, use_plugins
from flora_hpc.cli._job import job_with_config
from flora_hpc.cli._progress import Bar
from flora_hpc.comm import launch
from flora_hpc.config import Config
from flora_hpc.records import hdf5file


def evaluate(
    run: Run,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="a name, an HDF5 file, a folder or a file of pairs; the run's own by default",
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    plugin: Plugins = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """Measure the adapter of a finished run on the test images of any dataset. Any launcher will do, or none."""
    me = launch.detect()
    folder = hdf5file.locate(run).parent
    changes = [*([of_data(data)] if data else []), *FEDAVG, *(overrides or [])]

    def load() -> Config:
        use_plugins(plugin)
        rundir.check_plugins(folder, needs_algorithm=False)
        config, notes = configfile.load(folder / "config.yaml", changes)
        for note in [] if as_json else notes:
            print(f"note: {note}")
        return config

    with job_with_config(me, load, lambda: configfile.load_comm(folder / "config.yaml", changes)) as (comm, config):
        from flora_hpc import jobs  # torch and open_clip take seconds to import

        if comm.rank == 0:
            note_round(run)
        dataset, correct, total = jobs.evaluate_adapter(config, folder / "adapter", comm, me, Bar("features"))
        if comm.rank == 0:
            result = {"run": str(run), "dataset": dataset, "num_images": total, "num_correct": correct, "accuracy": correct / total}
            text = f"{config.method.name} of {run} on {dataset}: {correct:,} of {total:,} test images right, {correct / total:.4f}"
            print(json.dumps(result) if as_json else text)


def of_data(data: str) -> str:
    """The override that replaces the run's dataset and its options by a name, a file or a folder."""
    kinds = {".h5": "hdf5", ".hdf5": "hdf5", ".csv": "pairs", ".tsv": "pairs", ".jsonl": "pairs", ".tar": "pairs"}
    kind = "imagefolder" if Path(data).is_dir() else kinds.get(Path(data).suffix.lower())
    return f"data={json.dumps({'name': kind, 'path': data} if kind else {'name': data})}"
