"""Tracker: TensorBoard's event files in tensorboard/ of the run directory; needs flora-hpc[tensorboard]."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from flora_hpc.observers._tracker import Start, numbers
from flora_hpc.observers._trackerthread import TrackerThread
from flora_hpc.records.schema import Rows

PACKAGE = "tensorboard"


class TensorBoard:
    """Scalars whose step is the round; parameters for TensorBoard's HPARAMS page, which compares runs."""

    _writer: Any

    def start(self, run: Start) -> Collection[int]:
        from torch.utils.tensorboard import SummaryWriter, summary

        folder = run.folder / "tensorboard"
        rounds = steps(folder) if run.resumed and folder.exists() else set()
        self._writer = SummaryWriter(folder)
        if not rounds:
            plain = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in run.parameters.items()}
            for part in summary.hparams(plain, {"accuracy/test": None, "loss/train": None}):  # type: ignore[no-untyped-call]
                self._writer.file_writer.add_summary(part)
        return rounds

    def log(self, row: Rows) -> None:
        for name, value in numbers(row).items():
            self._writer.add_scalar(name, value, int(row["round"][0]))
        self._writer.flush()

    def end(self, status: str) -> None:
        self._writer.add_text("status", status)
        self._writer.close()


def steps(folder: Path) -> set[int]:
    """The rounds that event files hold."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), {"scalars": 0})  # all of them, not a sample
    events.Reload()
    name = "seconds/round"
    return {event.step for event in events.Scalars(name)} if name in events.Tags()["scalars"] else set()


def build(folder: Path) -> TrackerThread:
    return TrackerThread("tensorboard", folder, TensorBoard())
