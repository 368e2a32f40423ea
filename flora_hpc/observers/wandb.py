"""Tracker: a Weights & Biases run, in wandb/ of the run directory unless WANDB_MODE says otherwise; needs flora-hpc[wandb]."""

import os
import uuid
from collections.abc import Collection
from pathlib import Path
from typing import Any

from flora_hpc.observers._tracker import Bookmark, Start, numbers
from flora_hpc.observers._trackerthread import TrackerThread
from flora_hpc.records.schema import Rows

PACKAGE = "wandb"
QUIET = {
    "WANDB_SILENT": "true",  # the terminal belongs to the run
    "WANDB_CONSOLE": "off",
    "WANDB_ERROR_REPORTING": "false",  # no request that nobody asked for
    "WANDB_INIT_TIMEOUT": "25",  # less than a run's end waits: what hangs must not keep the process, either
    "WANDB_FINISH_TIMEOUT": "25",
}


class Wandb:
    """A run that goes on keeps its id. Offline it is written anew, whole: what wandb has not flushed dies with a killed run."""

    _run: Any

    def start(self, run: Start) -> Collection[int]:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        import wandb

        mode: Any = os.environ.get("WANDB_MODE", "offline")
        project = os.environ.get("WANDB_PROJECT", "flora_hpc")
        bookmark = Bookmark(run.folder / "wandb.json", project)
        kept = bookmark.read().get("run") if run.goes_on else None
        self._run = wandb.init(
            project=project,
            dir=os.environ.get("WANDB_DIR", run.folder),
            id=kept or os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:12],
            name=os.environ.get("WANDB_NAME", run.folder.absolute().name),
            config=run.parameters,
            mode=mode,
            resume="allow" if kept and mode == "online" else None,
            reinit="create_new",
        )
        bookmark.write(run=self._run.id)
        if not self._run.offline:
            return range(self._run.starting_step)
        if kept:
            set_aside(Path(self._run.dir).parent, kept)
        return ()

    def log(self, row: Rows) -> None:
        self._run.log(numbers(row), step=int(row["round"][0]))

    def end(self, status: str) -> None:
        self._run.summary["status"] = status
        self._run.finish(exit_code=int(status not in ("finished", "stopped")))


def set_aside(folder: Path, run: str) -> None:
    """Move what was written offline of a run, all but `folder`, to where `wandb sync` does not look."""
    replaced = folder.parent / "replaced"
    for old in folder.parent.glob(f"offline-run-*-{run}"):
        if old.name != folder.name:
            replaced.mkdir(exist_ok=True)
            old.rename(replaced / old.name)


def build(folder: Path) -> TrackerThread:
    return TrackerThread("wandb", folder, Wandb())
