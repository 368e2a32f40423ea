"""Tracker: a Weights & Biases run, in wandb/ of the run directory unless WANDB_MODE says otherwise; needs flora-hpc[wandb]."""

import os
import uuid
from collections.abc import Collection
from pathlib import Path
from typing import Any

from flora_hpc.observers._aside import Aside
from flora_hpc.observers._tracker import Bookmark, Start, numbers
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
    """A run that goes on keeps its id: offline it becomes one folder more, which `wandb sync` joins with those before."""

    _run: Any
    _bookmark: Bookmark

    def start(self, run: Start) -> Collection[int]:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        import wandb

        mode = os.environ.get("WANDB_MODE", "offline")
        project = os.environ.get("WANDB_PROJECT", "flora_hpc")
        self._bookmark = Bookmark(run.folder / "wandb.json", f"{mode} {os.environ.get('WANDB_BASE_URL', '')} {project}")
        kept = self._bookmark.read() if run.goes_on else {}
        self._run = wandb.init(
            project=project,
            dir=os.environ.get("WANDB_DIR", run.folder),
            id=kept.get("run") or os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:12],
            name=os.environ.get("WANDB_NAME", run.folder.absolute().name),
            config=run.parameters,
            mode=mode,
            resume="allow" if kept and mode == "online" else None,
            reinit="create_new",
        )
        logged = kept.get("rounds", 0) if self._run.offline else self._run.starting_step  # a server knows best
        self._bookmark.write(run=self._run.id, rounds=logged)
        return range(logged)

    def log(self, row: Rows) -> None:
        number = int(row["round"][0])
        self._run.log(numbers(row), step=number)
        self._bookmark.write(run=self._run.id, rounds=number + 1)

    def end(self, status: str) -> None:
        self._run.summary["status"] = status
        self._run.finish(exit_code=int(status not in ("finished", "stopped")))


def build(folder: Path) -> Aside:
    return Aside("wandb", folder, Wandb())
