"""Tracker: a Weights & Biases run, in wandb/ of the run directory unless WANDB_MODE says otherwise; needs flora-hpc[wandb]."""

import os
import uuid
from collections.abc import Collection
from pathlib import Path
from typing import Any

from flora_hpc.observers._tracker import RunIdFile, Start, numbers
from flora_hpc.observers._trackerthread import TrackerThread
from flora_hpc.records.schema import Rows

PACKAGE = "wandb"
QUIET = {
    "WANDB_SILENT": "true",  # the terminal belongs to the run
    "WANDB_CONSOLE": "off",
    "WANDB_ERROR_REPORTING": "false",  # no request that nobody asked for
    "WANDB_INIT_TIMEOUT": "25",  # less than the grace period at the end of a run: a hanging call must not keep the process alive
    "WANDB_FINISH_TIMEOUT": "25",
}


class Wandb:
    """A resumed run keeps its id. Offline, all rounds are written anew: what wandb has not flushed is lost with a killed run."""

    _run: Any

    def start(self, run: Start) -> Collection[int]:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        import wandb

        mode: Any = os.environ.get("WANDB_MODE", "offline")
        project = os.environ.get("WANDB_PROJECT", "flora_hpc")
        run_id_file = RunIdFile(run.folder / "wandb.json", project)
        run_id = run_id_file.read().get("run") if run.resumed else None
        self._run = wandb.init(
            project=project,
            dir=os.environ.get("WANDB_DIR", run.folder),
            id=run_id or os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:12],
            name=os.environ.get("WANDB_NAME", run.folder.absolute().name),
            config=run.parameters,
            mode=mode,
            resume="allow" if run_id and mode == "online" else None,
            reinit="create_new",
        )
        run_id_file.write(run=self._run.id)
        if not self._run.offline:
            return range(self._run.starting_step)
        if run_id:
            move_replaced(Path(self._run.dir).parent, run_id)
        return ()

    def log(self, row: Rows) -> None:
        self._run.log(numbers(row), step=int(row["round"][0]))

    def end(self, status: str) -> None:
        self._run.summary["status"] = status
        self._run.finish(exit_code=int(status not in ("finished", "stopped")))


def move_replaced(folder: Path, run: str) -> None:
    """Move the offline folders of a run, except `folder`, to a place that `wandb sync` does not read."""
    replaced = folder.parent / "replaced"
    for old in folder.parent.glob(f"offline-run-*-{run}"):
        if old.name != folder.name:
            replaced.mkdir(exist_ok=True)
            old.rename(replaced / old.name)


def build(folder: Path) -> TrackerThread:
    return TrackerThread("wandb", folder, Wandb())
