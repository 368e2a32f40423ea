"""What figures and tables of runs take from a run: numbers of its rounds, and what it was."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from flora_hpc.records import sentences, views
from flora_hpc.records.balance import balance as balance_of
from flora_hpc.records.opened import Run
from flora_hpc.records.schema import Rows
from flora_hpc.records.views import seconds
from flora_hpc.report.style import PHASES, Numbers

VERSIONS = ("flora_hpc", "python", "torch", "open_clip_torch")  # of those that a file names


def rounds(run: Run) -> Rows:
    """The rows of /rounds, round 0 included."""
    return run.tables["rounds"]


def trained(run: Run) -> Rows:
    """The rows of rounds in which clients trained."""
    rows: Rows = rounds(run)[rounds(run)["round"] > 0]
    return rows


def with_loss(run: Run) -> Rows:
    """The rows of rounds after which a training loss is known."""
    rows: Rows = rounds(run)[~np.isnan(rounds(run)["train_loss"])]
    return rows


def column(rows: Rows, name: str) -> Numbers:
    """A column as float64, zeros where an old version did not write it."""
    return rows[name].astype(float) if name in (rows.dtype.names or ()) else np.zeros(len(rows))


def phase_seconds(rows: Rows) -> dict[str, Numbers]:
    """Seconds of each phase, of a table that has them."""
    return {phase: column(rows, f"{phase}_seconds") for phase in PHASES}


def elapsed(run: Run) -> Numbers:
    """Seconds since the start of round 0 at the end of each round."""
    return np.cumsum(rounds(run)["round_seconds"])


def traffic(run: Run) -> Numbers:
    """Bytes that the federation has sent, up and down, at the end of each round."""
    return np.cumsum(rounds(run)["uplink_bytes"] + rounds(run)["downlink_bytes"])


def waiting(run: Run) -> str:
    """The share of its time that a rank waits for others."""
    rows = rounds(run)
    total = float(rows["round_seconds"].sum())
    return f"{100 * float(rows['wait_seconds'].sum()) / total:.1f} %" if total else "-"


def balance(run: Run) -> str:
    """Who is slowest and how much that matters, as `show` says it."""
    found = balance_of(run.tables["ranks"])
    if found is None:
        return "one rank waits for nobody"
    return f"balance {found.share:.0%}" + (f"; rank {found.rank} is {found}" if found.num_last else "")


def names(runs: Sequence[Run]) -> list[str]:
    """A short name for each run, no two alike: as many of the last parts of its path as that takes."""
    folders = [run.path.resolve().parent if run.path.name == "run.h5" else run.path.resolve() for run in runs]
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        short = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(short)) == len(short):
            return short
    return [str(folder) for folder in folders]


def label(run: Run) -> str:
    """What a single run is called."""
    return names([run])[0]


def settings(run: Run) -> dict[str, str]:
    """What was run, a line each: what `show` says, and all options of the method and of the split."""
    config, known = run.config, run.attributes
    told = sentences.describe(known, run.tables["topology"])
    if pretrained := config["model"].get("pretrained"):
        told["model"] += f", {pretrained}"
    told["method"] = f"{_options(config['method'])}; {sentences.update(known)}"
    versions: dict[str, str] = json.loads(known.get("versions", "{}"))
    shown = [f"{name} {versions[name]}" for name in VERSIONS if name in versions]
    more = {
        "split": _options(config["partition"], ("num_clients",)),
        "aggregator": _options(config["aggregator"]) if "aggregator" in config else "",
        "seed": str(known["seed"]),
        "versions": ", ".join(shown),
    }
    return told | {name: text for name, text in more.items() if text}


def _options(options: dict[str, Any], without: tuple[str, ...] = ()) -> str:
    """A member of a family and its options, in words."""
    rest = {key: value for key, value in options.items() if key not in ("name", *without) and value is not None}
    told = (
        f"{key.replace('_', ' ')} {'+'.join(map(str, value)) if isinstance(value, list) else value}" for key, value in rest.items()
    )
    return ", ".join([str(options["name"]), *told])


def status(run: Run) -> str:
    """How far it came and how it ended."""
    note = "still running, or killed before it could say so" if run.status == "running" else run.status
    return "; ".join(views.headline(rounds(run), note, run.num_rounds)[:2])


def headlines(run: Run) -> list[tuple[str, str, str]]:
    """The numbers to remember: what, the number, and a remark. Sums are over all rounds, round 0 included."""
    tested, played = views.accuracies(rounds(run)), trained(run)
    found = []
    if len(tested):
        first, last, best = tested[0]["test_accuracy"], tested[-1]["test_accuracy"], views.best(tested)
        value = f"{100 * first:.2f} → {percent(last)}" if len(tested) > 1 else percent(last)
        found.append(("test accuracy", value, f"best {percent(best['test_accuracy'])} after round {best['round']}"))
    else:
        found.append(("test accuracy", "-", "no round was evaluated"))
    up, down, collective = views.sent(rounds(run))
    found.append(("federation traffic", f"{up} up", f"{down} down; what clients would send and receive"))
    found.append(("sent by ranks", collective, "handed to collectives of the backend"))
    total = float(rounds(run)["round_seconds"].sum())
    each = f"{seconds(float(np.median(played['round_seconds'])))} a round (median)" if len(played) else "no round was trained"
    found.append(("time in rounds", seconds(total), f"{each}; start-up {seconds(run.attributes['setup_seconds'])}"))
    if len(played):
        found.append(("waiting", waiting(run), balance(run)))
    return found


def percent(share: float) -> str:
    """0.98765 -> '98.77 %', on one line."""
    return f"{100 * share:.2f}\u00a0%"


def differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Settings that are not alike in all runs: key -> a text for each run, '-' where it has no such setting."""
    trees = [
        sentences.flat(run.config) | {"(ranks)": run.attributes["world_size"], "(backend)": run.attributes["backend"]}
        for run in runs
    ]
    keys = list(dict.fromkeys(key for tree in trees for key in tree))
    rows = {key: ["-" if tree.get(key) is None else str(tree[key]) for tree in trees] for key in keys}
    return {key: texts for key, texts in rows.items() if len(set(texts)) > 1}
