"""Sentences about a run for people, before it starts or long after."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from flora_hpc import yamltext
from flora_hpc.records.known import RunInfo
from flora_hpc.records.schema import Rows
from flora_hpc.records.views import count


def describe_start(info: RunInfo) -> dict[str, str]:
    """Describe a run that is about to start: label -> text, one line each."""
    earlier = info.earlier
    attributes = vars(info) | {"resumed_after": json.dumps(earlier.resumed_after if earlier else [])}
    lines = describe(attributes, info.topology)
    if earlier and earlier.warnings:
        lines["goes on"] = "; ".join([lines["goes on"], *earlier.warnings])
    return lines


def describe(attributes: Mapping[str, Any], topology: Rows) -> dict[str, str]:
    """Describe a run by its attributes: label -> text. Files of old versions lack some attributes."""
    config = yamltext.parse(attributes["config"])
    cohort = config["cohort"].get("size") or f"{config['cohort'].get('fraction') or 1.0:.0%}"
    precision = config["model"].get("precision", "fp32")
    beta = f" (beta {config['partition']['beta']:g})" if config["partition"].get("beta") is not None else ""
    split = f"{config['partition']['name']}{beta} over {count(attributes['num_clients'], 'client')}"
    lines = {
        "model": config["model"]["name"] + (f", {precision}" if precision != "fp32" else ""),
        "method": f"{config['method']['name']}, {update(attributes)}",
        "algorithm": algorithm(attributes),
        "computed": attributes.get("how", ""),
        "data": f"{dataset(attributes)}, {split}, cohort {cohort}",
        "client": client(config.get("client", {})),
        "ranks": ranks(attributes, topology),
        "groups": groups(attributes) if "num_groups" in attributes else "",
        "features": features(attributes),
    }
    if resumed_after := json.loads(attributes.get("resumed_after", "[]")):
        lines["goes on"] = f"after round {resumed_after[-1]}" if resumed_after[-1] >= 0 else "from the start"
    lines["left out"] = dropped(attributes)
    warnings = attributes.get("warnings")
    lines["warnings"] = "; ".join(json.loads(warnings)) if isinstance(warnings, str) else ""  # observers print their own lines
    lines["screen"] = attributes.get("screen", "")
    return {name: text for name, text in lines.items() if text}


def dropped(attributes: Mapping[str, Any]) -> str:
    """Images that cannot be decoded, and files that are no images, by reason."""
    damaged, files = attributes.get("num_damaged", 0), attributes.get("left_out", {})
    reasons = json.loads(files) if isinstance(files, str) else files
    parts = [f"{count(damaged, 'image')} that cannot be decoded"] if damaged else []
    return "; ".join(parts + [f"{count(number, 'file')}: {reason}" for reason, number in reasons.items()])


def dataset(attributes: Mapping[str, Any]) -> str:
    """The name of the dataset; files of schema 1 have it only in their configuration."""
    return str(attributes["dataset"] if "dataset" in attributes else yamltext.parse(attributes["config"])["data"]["name"])


def algorithm(attributes: Mapping[str, Any]) -> str:
    """The algorithm, and the parts named instead of its own; empty for plain FedAvg, and for files before schema 7."""
    name = str(attributes.get("algorithm", ""))
    return "" if name == "fedavg" else name


def update(attributes: Mapping[str, Any]) -> str:
    """The size of a client's update."""
    return f"{attributes['num_params']:,} trained numbers, {decimal(attributes['payload_bytes'])} per update"


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'client': {'lr': 0.1}} -> {'client.lr': 0.1}."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        values |= leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return values


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The same, where lists are texts."""
    return {key: ", ".join(map(str, value)) if isinstance(value, list) else value for key, value in leaves(tree).items()}


def client(options: Mapping[str, Any]) -> str:
    """How a client trains: optimizer, batches, epochs, loss."""
    parts = []
    if "lr" in options:
        parts.append(f"{options.get('optimizer', 'adam')}, lr {options['lr']:g}")
    parts += [f"batches of {options['batch_size']}"] if "batch_size" in options else []
    parts += [count(options["epochs"], "epoch") + " a round"] if "epochs" in options else []
    return ", ".join([*parts, *([options["loss"]] if "loss" in options else [])])


def ranks(attributes: Mapping[str, Any], topology: Rows) -> str:
    """Number of ranks, launcher, hosts, backend and devices."""
    threads = "/".join(map(str, sorted(set(topology["num_threads"].tolist()))))
    devices = sorted({device.decode() for device in topology["device"].tolist()})
    hosts = sorted({host.decode() for host in topology["host"].tolist()})
    shared = "; ranks share GPUs, and NCCL needs one for each" if any("shared by" in device for device in devices) else ""
    launcher = "" if attributes["launcher"] == "none" else f" by {attributes['launcher']}"
    where = f" on {hosts[0]}" if len(hosts) == 1 else f" on {count(len(hosts), 'host')}"
    return (
        f"{count(attributes['world_size'], 'rank')}{launcher}{where}, backend {attributes['backend']}, "
        f"{'/'.join(devices)} x {threads} thread{'s' * (threads != '1')}{shared}"
    )


def groups(attributes: Mapping[str, Any]) -> str:
    """Number and size of a round's groups, and the number of ranks without a group."""
    most, idle = attributes["group_size"], attributes["world_size"] - attributes["num_groups"]
    text = f"{attributes['num_groups']:,} a round, " + (
        "each client on its own" if most == 1 else f"up to {count(most, 'client')} in one batch of tensors"
    )
    if idle > 0:
        text += f"; {count(idle, 'rank has', 'ranks have')} none (more clients a round, or on GPUs a lower client.group_size)"
    return text


def features(attributes: Mapping[str, Any]) -> str:
    """Where the images' features came from."""
    place = attributes.get("features", "")
    place = place if place in ("", "memory") else str(Path(place).parent.parent)
    if attributes.get("num_features_computed"):
        return f"{count(attributes['num_features_computed'], 'image')} encoded, kept in {place}"
    return f"from an earlier run, in {place}" if place else ""
