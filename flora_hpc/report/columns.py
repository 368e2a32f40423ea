"""The numbers and texts that figures and tables take from a run."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from flora_hpc.config import OPTIONAL
from flora_hpc.records import sentences, views
from flora_hpc.records.balance import balance as balance_of
from flora_hpc.records.opened import Run
from flora_hpc.records.schema import Rows
from flora_hpc.records.views import seconds
from flora_hpc.report.style import PHASES, Numbers

VERSIONS = ("flora_hpc", "python", "torch", "open_clip_torch")  # shown, of the versions in a file


def rounds(run: Run) -> Rows:
    """The rows of /rounds, round 0 included."""
    return run.tables["rounds"]


def trained(run: Run) -> Rows:
    """The rows of rounds in which clients trained."""
    rows: Rows = rounds(run)[rounds(run)["round"] > 0]
    return rows


def with_loss(run: Run) -> Rows:
    """The rows of rounds with a training loss."""
    rows: Rows = rounds(run)[~np.isnan(rounds(run)["train_loss"])]
    return rows


def column(rows: Rows, name: str) -> Numbers:
    """A column as float64, zeros where an old version did not write it."""
    return rows[name].astype(float) if name in (rows.dtype.names or ()) else np.zeros(len(rows))


def phase_seconds(rows: Rows) -> dict[str, Numbers]:
    """Seconds of each phase in rows of /rounds or /ranks."""
    return {phase: column(rows, f"{phase}_seconds") for phase in PHASES}


def elapsed(run: Run) -> Numbers:
    """Seconds since the start of round 0 at the end of each round."""
    return np.cumsum(rounds(run)["round_seconds"])


def traffic(run: Run) -> Numbers:
    """Bytes that the federation has sent, up and down, at the end of each round."""
    return np.cumsum(rounds(run)["uplink_bytes"] + rounds(run)["downlink_bytes"])


def waiting(run: Run) -> str:
    """The share of time that ranks wait for other ranks."""
    rows = rounds(run)
    total = float(rows["round_seconds"].sum())
    return f"{100 * float(rows['wait_seconds'].sum()) / total:.1f} %" if total else "-"


def balance(run: Run) -> str:
    """The balance of ranks, and the slowest rank, as `show` prints them."""
    result = balance_of(run.tables["ranks"])
    if result is None:
        return "one rank waits for nobody"
    return f"balance {result.share:.0%}" + (f"; rank {result.rank} is {result}" if result.num_last else "")


def names(runs: Sequence[Run]) -> list[str]:
    """A unique short name for each run: the last parts of its path, as few as possible."""
    folders = [run.path.resolve().parent if run.path.name == "run.h5" else run.path.resolve() for run in runs]
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        short = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(short)) == len(short):
            return short
    return [str(folder) for folder in folders]


def label(run: Run) -> str:
    """The short name of a single run."""
    return names([run])[0]


def settings(run: Run) -> dict[str, str]:
    """The settings of a run, one line each: those of `show`, and all options of the method and of the split."""
    config, attributes = run.config, run.attributes
    lines = sentences.describe(attributes, run.tables["topology"])
    if pretrained := config["model"].get("pretrained"):
        lines["model"] += f", {pretrained}"
    lines["method"] = f"{_options(config['method'])}; {sentences.update(attributes)}"
    versions: dict[str, str] = json.loads(attributes.get("versions", "{}"))
    texts = [f"{name} {versions[name]}" for name in VERSIONS if name in versions]
    more = {
        "split": _options(config["partition"], ("num_clients",)),
        "algorithm": _algorithm(config),
        "seed": str(attributes["seed"]),
        "versions": ", ".join(texts),
    }
    return lines | {name: text for name, text in more.items() if text}


def _algorithm(config: dict[str, Any]) -> str:
    """The algorithm, with the parts that were named instead of its own; the server's rule of files before schema 7."""
    options = config.get("algorithm") or config.get("aggregator")
    parts = {part: config[part] for part in OPTIONAL if config.get(part)}
    return "; ".join(
        [_options(options) if options else "", *(f"{part}: {_options(part_options)}" for part, part_options in parts.items())]
    )


def _options(options: dict[str, Any], without: tuple[str, ...] = ()) -> str:
    """A member of a family and its options, in words."""
    rest = {key: value for key, value in options.items() if key not in ("name", *without) and value is not None}
    texts = (
        f"{key.replace('_', ' ')} {'+'.join(map(str, value)) if isinstance(value, list) else value}" for key, value in rest.items()
    )
    return ", ".join([str(options["name"]), *texts])


def status(run: Run) -> str:
    """How far the run came and how it ended."""
    note = "still running, or killed before it could say so" if run.status == "running" else run.status
    return "; ".join(views.headline(rounds(run), note, run.num_rounds)[:2])


def headlines(run: Run) -> list[tuple[str, str, str]]:
    """The main numbers: name, number and remark. Sums are over all rounds, round 0 included."""
    tests, training = views.accuracies(rounds(run)), trained(run)
    lines = []
    if len(tests):
        first, last, best = (
            tests[0]["test_accuracy"],
            tests[-1]["test_accuracy"],
            views.best(tests),
        )
        value = f"{100 * first:.2f} → {percent(last)}" if len(tests) > 1 else percent(last)
        lines.append(("test accuracy", value, f"best {percent(best['test_accuracy'])} after round {best['round']}"))
    else:
        lines.append(("test accuracy", "-", "no round was evaluated"))
    if len(chosen_on := views.validations(rounds(run))):
        best, values = views.best(chosen_on, "validation_accuracy"), chosen_on["validation_accuracy"]
        remark = f"best {percent(best['validation_accuracy'])} after round {best['round']}"
        remark += f", where test accuracy is {percent(best['test_accuracy'])}"
        value = f"{100 * values[0]:.2f} → {percent(values[-1])}" if len(values) > 1 else percent(values[-1])
        lines.append(("validation accuracy", value, remark))
    if len(own := views.personal(rounds(run))):
        last = own[-1]
        worst = f"worst {percent(last['personal_accuracy_min'])} (client {last['personal_worst_client']})"
        spread = f"{worst}, standard deviation {percent(last['personal_accuracy_std'])}"
        remark = f"{spread}; the server's adapter on the same clients {percent(last['personal_global_mean'])}"
        lines.append(("personal accuracy", percent(last["personal_accuracy_mean"]), remark))
    if len(cut := views.by_rank(rounds(run))):
        last = cut[-1]
        remark = f"mean over clients; lowest {percent(last['rank_accuracy_min'])} for rank {last['worst_rank']}"
        lines.append(("accuracy cut to clients' ranks", percent(last["rank_accuracy_mean"]), remark + ranks_in(run, last["round"])))
    if len(attacked := views.backdoors(rounds(run))):
        values = attacked["backdoor_success"]
        remark = f"of test images of other classes; {percent(values[0])} before training, most {percent(values.max())}"
        lines.append(("triggered images that get the target", percent(values[-1]), remark))
    if len(crossed := views.cross_terms(rounds(run))):
        most, value = views.best(crossed, "cross_term"), f"{crossed[-1]['cross_term']:.3g}"
        remark = f"|mean B A - mean B mean A| / |mean B A| in round {crossed[-1]['round']}"
        lines.append(("cross term", value, f"{remark}; largest {most['cross_term']:.3g} in round {most['round']}"))
    up, down, collective = views.sent(rounds(run))
    lines.append(("federation traffic", f"{up} up", f"{down} down; what clients would send and receive"))
    lines.append(("sent by ranks", collective, "handed to collectives of the backend"))
    total = float(rounds(run)["round_seconds"].sum())
    each = f"{seconds(float(np.median(training['round_seconds'])))} a round (median)" if len(training) else "no round was trained"
    lines.append(("time in rounds", seconds(total), f"{each}; start-up {seconds(run.attributes['setup_seconds'])}"))
    if len(training):
        lines.append(("waiting", waiting(run), balance(run)))
    return lines


def ranks_in(run: Run, number: int) -> str:
    """The accuracy of each rank of the clients of a round, in words; empty where /clients was not read."""
    if "clients" not in run.tables:
        return ""
    of_round = run.clients_of(number, ("adapter_rank", "rank_accuracy"))
    ranks, firsts = np.unique(of_round["adapter_rank"], return_index=True)
    parts = [f"{rank}: {percent(of_round['rank_accuracy'][first])}" for rank, first in zip(ranks, firsts, strict=True)]
    return f"; by rank {', '.join(parts)}" if parts else ""


def percent(share: float) -> str:
    """0.98765 -> '98.77 %', on one line."""
    return f"{100 * share:.2f}\u00a0%"


def differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Settings that differ between runs: key -> a text for each run, '-' for a run without the setting."""
    trees = [
        sentences.flat(run.config) | {"(ranks)": run.attributes["world_size"], "(backend)": run.attributes["backend"]}
        for run in runs
    ]
    keys = list(dict.fromkeys(key for tree in trees for key in tree))
    rows = {key: ["-" if tree.get(key) is None else str(tree[key]) for tree in trees] for key in keys}
    return {key: texts for key, texts in rows.items() if len(set(texts)) > 1}
