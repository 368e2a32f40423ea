"""Parts of a run as text: numbers with their unit, a curve, a bar of where time went, a line a round."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.filesize import decimal
from rich.text import Text

from flora_hpc.records.schema import DECILES, Rows

PHASES = {
    "batch": "bright_green",
    "train": "green",
    "sum": "bright_cyan",
    "wait": "yellow",
    "comm": "magenta",
    "server": "cyan",
    "eval": "blue",
    "log": "white",
}
PER_CLIENT = ("client_accuracy_mean", "client_accuracy_std", "client_accuracy_min", "worst_client")  # with evaluate.per_client
PERSONAL = (  # with evaluate.personal
    "personal_accuracy_mean", "personal_accuracy_std", "personal_accuracy_min", "personal_worst_client", *DECILES,
    "personal_global_mean",
)  # fmt: skip
BY_RANK = ("rank_accuracy_mean", "rank_accuracy_min", "worst_rank")  # with evaluate.per_rank
ALWAYS, LARGE = (
    ("train", "wait", "comm"),
    0.1,
)  # phases that the line of a round always has; share of the round from which it has other phases
STUCK_LOSS = 0.95  # a loss above this share of its first value has not fallen
EIGHTHS = " ▁▂▃▄▅▆▇█"


def seconds(value: float) -> str:
    """0.0123 -> '12.3 ms', 75 -> '1:15'."""
    if value == 0:
        return "0 s"
    if value < 1e-4:
        return f"{value * 1e6:.0f} µs"
    if value < 1:
        return f"{value * 1000:.1f} ms"
    if value < 60:
        return f"{value:.2f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def start_up(attributes: Mapping[str, Any]) -> str:
    """The seconds before round 0, and the parts of them where the file has them (schema 10)."""
    names = {"start": "imports and connections", "build": "data and model", "features": "features", "state": "checks and state"}
    parts = {name: attributes.get(f"setup_{part}_seconds", np.nan) for part, name in names.items()}
    whole = seconds(attributes["setup_seconds"])
    return whole if np.isnan([*parts.values()]).any() else f"{whole} ({', '.join(f'{n} {seconds(v)}' for n, v in parts.items())})"


def count(number: int, what: str, many: str = "") -> str:
    """1 -> '1 round', 2000 -> '2,000 rounds'; `many` is an irregular plural."""
    return f"{number:,} {what if number == 1 else many or what + 's'}"


def headline(rounds: Rows, status: str, num_rounds: int) -> list[str]:
    """A run in a few words: status, rounds, accuracy."""
    done, measured = int(rounds["round"].max(initial=0)), accuracies(rounds)
    parts = [status, count(done, "round") if done == num_rounds else f"round {done:,} of {num_rounds:,}"]
    if len(measured):
        first, last = (f"{row['test_accuracy']:.4f}" for row in (measured[0], measured[-1]))
        parts.append(f"test accuracy {first}" + (f" → {last}" if len(measured) > 1 else ""))
    return parts


def accuracies(rounds: Rows) -> Rows:
    """The rows of /rounds in which the test accuracy was measured."""
    measured: Rows = rounds[~np.isnan(rounds["test_accuracy"])]
    return measured


def validations(rounds: Rows) -> Rows:
    """The rows of /rounds in which the validation accuracy was measured; files of old versions have none."""
    if "validation_accuracy" not in (rounds.dtype.names or ()):
        return rounds[:0]
    measured: Rows = rounds[~np.isnan(rounds["validation_accuracy"])]
    return measured


def personal(rounds: Rows) -> Rows:
    """The rows of /rounds in which clients' own models were tested (evaluate.personal); files of old versions have none."""
    if "personal_accuracy_mean" not in (rounds.dtype.names or ()):
        return rounds[:0]
    measured: Rows = rounds[~np.isnan(rounds["personal_accuracy_mean"])]
    return measured


def backdoors(rounds: Rows) -> Rows:
    """The rows of /rounds in which the backdoor of attackers was tested; files of old versions have none."""
    if "backdoor_success" not in (rounds.dtype.names or ()):
        return rounds[:0]
    measured: Rows = rounds[~np.isnan(rounds["backdoor_success"])]
    return measured


def cross_terms(rounds: Rows) -> Rows:
    """The rows of /rounds in which the cross term was measured (evaluate.cross_term); files of old versions have none."""
    if "cross_term" not in (rounds.dtype.names or ()):
        return rounds[:0]
    measured: Rows = rounds[~np.isnan(rounds["cross_term"])]
    return measured


def by_rank(rounds: Rows) -> Rows:
    """The rows of /rounds in which the adapter was tested cut to each rank (evaluate.per_rank); files of old versions have none."""
    if "rank_accuracy_mean" not in (rounds.dtype.names or ()):
        return rounds[:0]
    measured: Rows = rounds[~np.isnan(rounds["rank_accuracy_mean"])]
    return measured


def best(measured: Rows, name: str = "test_accuracy") -> Any:
    """The row with the highest accuracy; the first of several."""
    return measured[measured[name].argmax()]


def sent(rounds: Rows | np.void) -> tuple[str, str, str]:
    """Bytes up, down, and handed to collectives: of one row of /rounds, or summed over several."""
    up, down, collective = (decimal(int(rounds[f"{name}_bytes"].sum())) for name in ("uplink", "downlink", "collective"))
    return up, down, collective


def per_client(rounds: Rows) -> bool:
    """Whether the run tested clients on their own (evaluate.per_client); runs of old versions never did."""
    return "worst_client" in (rounds.dtype.names or ()) and bool((rounds["worst_client"] >= 0).any())


def flow(items: Sequence[Text], width: int, gap: int = 3) -> Text:
    """Fill lines of up to `width` cells with items; no item is split."""
    lines = [Text()]
    for item in items:
        if lines[-1] and lines[-1].cell_len + gap + item.cell_len > width:
            lines.append(Text())
        lines[-1].append(" " * gap if lines[-1] else "").append_text(item)
    return Text("\n").join(lines)


def shares(rounds: Rows) -> dict[str, float]:
    """The share of each phase in all seconds of `rounds`."""
    total = rounds["round_seconds"].sum() or 1.0
    phases = [phase for phase in PHASES if f"{phase}_seconds" in (rounds.dtype.names or ())]  # files of old versions lack some
    return {phase: float(rounds[f"{phase}_seconds"].sum() / total) for phase in phases}


def share_words(phase: str, share: float) -> str:
    """train, 0.937 -> 'train 94%'; shares below a tenth have a digit more."""
    return f"{phase} {share:.0%}" if share >= 0.1 else f"{phase} {share:.1%}"


def time_split(rounds: Rows, width: int, coloured: bool = True) -> Text:
    """The share of each phase in all seconds of `rounds`: one bar over `width` cells and its legend; words, without colours."""
    parts = shares(rounds)
    if not coloured:
        return flow([Text(share_words(*part)) for part in parts.items()], width, 2)
    bar, legend = Text(), []
    ends = np.round(np.cumsum(list(parts.values())) * width).astype(int)
    for (phase, share), start, end in zip(parts.items(), [0, *ends[:-1]], ends, strict=True):
        bar.append("█" * (end - start), PHASES[phase])
        legend.append(Text.assemble(("■", PHASES[phase]), f" {share_words(phase, share)}"))
    return bar.append("\n").append_text(flow(legend, width, 2))


def line(row: Any, num_rounds: int) -> str:
    """A round on one line, for logs that are searched with grep. `row` is one of /rounds."""
    parts = [f"round {row['round']}/{num_rounds}"]
    if not np.isnan(row["test_accuracy"]):
        parts.append(f"accuracy {row['test_accuracy']:.4f}")
    if "validation_accuracy" in (row.dtype.names or ()) and not np.isnan(row["validation_accuracy"]):
        parts.append(f"validation {row['validation_accuracy']:.4f}")
    if "personal_accuracy_mean" in (row.dtype.names or ()) and not np.isnan(row["personal_accuracy_mean"]):
        parts.append(f"personal {row['personal_accuracy_mean']:.4f}")
    if row["round"]:
        parts += [] if np.isnan(row["train_loss"]) else [f"loss {row['train_loss']:.4f}"]
        parts += [f"clients {row['num_clients']}", f"up {decimal(int(row['uplink_bytes']))}"]
        phases = [phase for phase in PHASES if f"{phase}_seconds" in (row.dtype.names or ())]  # files of old versions lack some
        large = [phase for phase in phases if row[f"{phase}_seconds"] >= LARGE * row["round_seconds"] > 0]
        shown = [phase for phase in phases if phase in ALWAYS or phase in large]
        parts += [f"{phase} {seconds(row[f'{phase}_seconds'])}" for phase in shown]
    if row["num_rejected"]:
        parts.append(f"left out {row['num_rejected']} (not finite or too large)")
    return " | ".join([*parts, f"round {seconds(row['round_seconds'])}"])


def dropped_updates(rounds: Rows) -> str:
    """A sentence about updates that were dropped; empty when there are none."""
    rejected = int(rounds["num_rejected"].sum())
    how = "was not finite or too large and was left out" if rejected == 1 else "were not finite or too large and were left out"
    return f"{count(rejected, 'client update')} {how}" if rejected else ""


def unmoved(rounds: Rows) -> str:
    """A warning that two rounds of training or more changed no accuracy and hardly the loss; else, or without training, empty."""
    trained, accuracy = rounds[rounds["round"] > 0], accuracies(rounds)["test_accuracy"]
    loss = trained["train_loss"][np.isfinite(trained["train_loss"])]
    if len(loss) < 2 or len(accuracy) < 2 or not trained["uplink_bytes"].any():
        return ""
    if accuracy.min() < accuracy.max() or accuracy[0] == 1 or loss[-1] < STUCK_LOSS * loss[0]:
        return ""
    text = f"test accuracy stayed at {accuracy[0]:.4f}, and the training loss went from {loss[0]:.4g} to {loss[-1]:.4g}"
    return f"{text} in {count(len(trained), 'round')}; client.lr may be too low, or far too high"


def ending(status: str, folder: Path) -> str:
    """The folder of a run that ended, and how to resume it."""
    return f"in {folder}" + (f"; the same command with --resume --out {folder} goes on" if status == "interrupted" else "")
