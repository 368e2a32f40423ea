"""What figures and tables of runs take from a run: numbers of its rounds, and what it was."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.filesize import decimal

from flora_hpc.records.opened import Run
from flora_hpc.records.schema import Rows
from flora_hpc.records.views import seconds
from flora_hpc.report.style import PHASES, Numbers


def rounds(run: Run) -> Rows:
    """The rows of /rounds, round 0 included."""
    return run.tables["rounds"]


def trained(run: Run) -> Rows:
    """The rows of rounds in which clients trained."""
    rows: Rows = rounds(run)[rounds(run)["round"] > 0]
    return rows


def measured(run: Run) -> Rows:
    """The rows of rounds after which the accuracy was measured."""
    rows: Rows = rounds(run)[~np.isnan(rounds(run)["test_accuracy"])]
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


def balance(run: Run) -> tuple[float, float]:
    """The share of its time that a rank waits, and how much longer the busiest rank trains than the mean."""
    ranks = run.tables["ranks"]
    ranks = ranks[ranks["round"] > 0]
    total = ranks["round_seconds"].sum()
    busy = np.bincount(ranks["rank"], ranks["train_seconds"])
    return float(ranks["wait_seconds"].sum() / total) if total else 0.0, float(busy.max() / busy.mean()) if busy.sum() else 1.0


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
    """What was run, a line each."""
    config, known = run.config, run.attributes
    cohort = config.get("cohort", {})
    size = cohort.get("size") or f"{cohort.get('fraction') or 1.0:.0%}"
    client, model = config.get("client", {}), config["model"]
    pretrained = f", {model['pretrained']}" if model.get("pretrained") else ""
    method = _options(config["method"])
    hosts = sorted({text for row in run.tables["topology"]["host"].tolist() if (text := row.decode())})
    devices = sorted({row.decode() for row in run.tables["topology"]["device"].tolist()})
    where = (
        f"{known['world_size']}, on {len(hosts)} node{'s' * (len(hosts) != 1)}, {', '.join(devices)}, backend {known['backend']}"
    )
    return {
        "model": f"{model['name']}{pretrained}, {model.get('precision', 'fp32')}",
        "method": f"{method}; {known['num_params']:,} trained numbers, {decimal(known['payload_bytes'])} an update",
        "data": str(known["dataset"]),
        "partition": f"{_options(config['partition'], ('num_clients',))}; {known['num_clients']:,} clients, cohort {size}",
        "client": ", ".join(
            f"{name.replace('_', ' ')} {client[name]}"
            for name in ("epochs", "batch_size", "lr", "optimizer", "loss")
            if name in client
        ),
        "aggregator": _options(config.get("aggregator", {"name": "-"})),
        "ranks": where,
        "seed": str(known["seed"]),
        "versions": _versions(known),
    }


def _versions(known: dict[str, Any]) -> str:
    import json

    found = json.loads(known.get("versions", "{}"))
    return ", ".join(f"{name} {found[name]}" for name in ("flora_hpc", "python", "torch", "open_clip_torch") if name in found)


def _options(options: dict[str, Any], without: tuple[str, ...] = ()) -> str:
    """A member of a family and its options, in words."""
    rest = {key: value for key, value in options.items() if key not in ("name", *without) and value is not None}
    told = (
        f"{key.replace('_', ' ')} {'+'.join(map(str, value)) if isinstance(value, list) else value}" for key, value in rest.items()
    )
    return ", ".join([str(options["name"]), *told])


def status(run: Run) -> str:
    """How far it came and how it ended."""
    done, planned = int(rounds(run)["round"].max(initial=0)), run.config.get("rounds", 0)
    far = f"{done:,} of {planned:,} rounds"
    note = {"running": "still running, or killed before it could say so"}.get(run.status, run.status)
    return f"{note}; {far}"


def headlines(run: Run) -> list[tuple[str, str, str]]:
    """The numbers to remember: what, the number, and a remark."""
    tested, played = measured(run), trained(run)
    found = []
    if len(tested):
        first, last = tested[0]["test_accuracy"], tested[-1]["test_accuracy"]
        best = tested[tested["test_accuracy"].argmax()]
        value = f"{100 * first:.2f} → {percent(last)}" if len(tested) > 1 else percent(last)
        found.append(("test accuracy", value, f"best {percent(best['test_accuracy'])} after round {best['round']}"))
    else:
        found.append(("test accuracy", "-", "no round was evaluated"))
    if len(played):
        up, down = int(played["uplink_bytes"].sum()), int(played["downlink_bytes"].sum())
        found.append(("federation traffic", f"{decimal(up)} up", f"{decimal(down)} down; what clients would send and receive"))
        found.append(("sent by ranks", decimal(int(played["collective_bytes"].sum())), "handed to collectives of the backend"))
    total = float(rounds(run)["round_seconds"].sum())
    each = f"{seconds(float(np.median(played['round_seconds'])))} a round (median)" if len(played) else "no round was trained"
    found.append(("time in rounds", seconds(total), f"{each}; start-up {seconds(run.attributes['setup_seconds'])}"))
    if len(played):
        waiting, busiest = balance(run)
        one = run.attributes["world_size"] == 1
        remark = "one rank waits for nobody" if one else f"the busiest rank trains {busiest:.2f} times the mean"
        found.append(("waiting", f"{100 * waiting:.1f} %", remark))
    return found


def percent(share: float) -> str:
    """0.98765 -> '98.77 %', on one line."""
    return f"{100 * share:.2f}\u00a0%"


def flat(tree: dict[str, Any], before: str = "") -> dict[str, str]:
    """A nested configuration as 'client.lr' -> text."""
    found: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= flat(value, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = (
                ", ".join(map(str, value)) if isinstance(value, list) else "-" if value is None else str(value)
            )
    return found


def differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Settings that are not alike in all runs: key -> a text for each run, '-' where it has no such setting."""
    trees = [
        flat(run.config) | {"(ranks)": str(run.attributes["world_size"]), "(backend)": str(run.attributes["backend"])}
        for run in runs
    ]
    keys = list(dict.fromkeys(key for tree in trees for key in tree))
    rows = {key: [tree.get(key, "-") for tree in trees] for key in keys}
    return {key: texts for key, texts in rows.items() if len(set(texts)) > 1}


def folder(run: Run) -> Path:
    """The directory that holds the run's file."""
    return run.path.parent
