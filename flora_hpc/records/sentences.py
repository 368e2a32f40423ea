"""What a person wants to know about a run before it starts, or long after."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from flora_hpc import yamltext
from flora_hpc.records.known import RunInfo
from flora_hpc.records.schema import Rows
from flora_hpc.records.views import count


def facts_of(info: RunInfo) -> dict[str, str]:
    """Of a run that is about to start: label -> text, one line each."""
    earlier = info.earlier
    known = vars(info) | {"resumed_after": json.dumps(earlier.resumed_after if earlier else [])}
    lines = facts(known, info.topology)
    if earlier and earlier.told:
        lines["goes on"] = "; ".join([lines["goes on"], *earlier.told])
    return lines


def facts(known: Mapping[str, Any], topology: Rows) -> dict[str, str]:
    """Of a run whose attributes are `known`; files of old versions lack some."""
    config = yamltext.parse(known["config"])
    cohort = config["cohort"].get("size") or f"{config['cohort'].get('fraction') or 1.0:.0%}"
    precision = config["model"].get("precision", "fp32")
    beta = f" (beta {config['partition']['beta']:g})" if config["partition"].get("beta") is not None else ""
    split = f"{config['partition']['name']}{beta} over {count(known['num_clients'], 'client')}"
    facts = {
        "model": config["model"]["name"] + (f", {precision}" if precision != "fp32" else ""),
        "method": f"{config['method']['name']}, {update(known)}",
        "computed": known.get("how", ""),
        "data": f"{dataset(known)}, {split}, cohort {cohort}",
        "client": client(config.get("client", {})),
        "ranks": ranks(known, topology),
        "groups": groups(known) if "num_groups" in known else "",
        "features": features(known),
    }
    if resumed := json.loads(known.get("resumed_after", "[]")):
        facts["goes on"] = f"after round {resumed[-1]}" if resumed[-1] >= 0 else "from the start"
    facts["left out"] = left_out(known)
    warnings = known.get("warnings")
    facts["warnings"] = "; ".join(json.loads(warnings)) if isinstance(warnings, str) else ""  # observers print their own lines
    facts["screen"] = known.get("screen", "")
    return {name: text for name, text in facts.items() if text}


def left_out(known: Mapping[str, Any]) -> str:
    """Images that cannot be decoded, and files that are no images, by reason."""
    damaged, files = known.get("num_damaged", 0), known.get("left_out", {})
    reasons = json.loads(files) if isinstance(files, str) else files
    parts = [f"{count(damaged, 'image')} that cannot be decoded"] if damaged else []
    return "; ".join(parts + [f"{count(number, 'file')}: {reason}" for reason, number in reasons.items()])


def dataset(known: Mapping[str, Any]) -> str:
    """What it is called; files of schema 1 say it only in their configuration."""
    return str(known["dataset"] if "dataset" in known else yamltext.parse(known["config"])["data"]["name"])


def update(known: Mapping[str, Any]) -> str:
    """What a client sends."""
    return f"{known['num_params']:,} trained numbers, {decimal(known['payload_bytes'])} per update"


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'client': {'lr': 0.1}} -> {'client.lr': 0.1}; lists become texts."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = ", ".join(map(str, value)) if isinstance(value, list) else value
    return leaves


def client(options: Mapping[str, Any]) -> str:
    """How a client trains: what a reader compares between two runs first."""
    parts = []
    if "lr" in options:
        parts.append(f"{options.get('optimizer', 'adam')}, lr {options['lr']:g}")
    parts += [f"batches of {options['batch_size']}"] if "batch_size" in options else []
    parts += [count(options["epochs"], "epoch") + " a round"] if "epochs" in options else []
    return ", ".join([*parts, *([options["loss"]] if "loss" in options else [])])


def ranks(known: Mapping[str, Any], topology: Rows) -> str:
    """How many, started by what, where, on which devices."""
    threads = "/".join(map(str, sorted(set(topology["num_threads"].tolist()))))
    devices = sorted({device.decode() for device in topology["device"].tolist()})
    hosts = sorted({host.decode() for host in topology["host"].tolist()})
    shared = "; ranks share GPUs, and NCCL needs one for each" if any("shared by" in device for device in devices) else ""
    started = "" if known["launcher"] == "none" else f" by {known['launcher']}"
    where = f" on {hosts[0]}" if len(hosts) == 1 else f" on {count(len(hosts), 'host')}"
    return (
        f"{count(known['world_size'], 'rank')}{started}{where}, backend {known['backend']}, "
        f"{'/'.join(devices)} x {threads} thread{'s' * (threads != '1')}{shared}"
    )


def groups(known: Mapping[str, Any]) -> str:
    """Into which groups a round's clients fall, and how many ranks get none."""
    most, idle = known["group_size"], known["world_size"] - known["num_groups"]
    text = f"{known['num_groups']:,} a round, " + (
        "each client on its own" if most == 1 else f"up to {count(most, 'client')} in one batch of tensors"
    )
    if idle > 0:
        text += f"; {count(idle, 'rank has', 'ranks have')} none (more clients a round, or on GPUs a lower client.group_size)"
    return text


def features(known: Mapping[str, Any]) -> str:
    """Where the images' features came from."""
    place = known.get("features", "")
    place = place if place in ("", "memory") else str(Path(place).parent.parent)
    if known.get("num_features_computed"):
        return f"{count(known['num_features_computed'], 'image')} encoded, kept in {place}"
    return f"from an earlier run, in {place}" if place else ""
