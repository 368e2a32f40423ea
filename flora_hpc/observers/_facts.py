"""What a person wants to know about a run before it starts."""

from pathlib import Path

import yaml
from rich.filesize import decimal

from flora_hpc.records.known import RunInfo


def facts(info: RunInfo) -> dict[str, str]:
    """Label -> text, one line each."""
    config = yaml.safe_load(info.config)
    cohort = config["cohort"]["size"] or f"{config['cohort']['fraction'] or 1.0:.0%}"
    threads = sorted(set(info.topology["num_threads"].tolist()))
    devices = sorted({device.decode() for device in info.topology["device"].tolist()})
    ranks = f"{info.world_size} rank{'s' * (info.world_size > 1)}"
    shared = "; ranks share GPUs, and NCCL needs one for each" if any("shared by" in device for device in devices) else ""
    started = "" if info.launcher == "none" else f" by {info.launcher}"
    groups = f"{info.num_groups:,} a round, up to {info.group_size} client{'s' * (info.group_size > 1)} in one batch of tensors"
    if info.world_size > info.num_groups:
        groups += f"; {info.world_size - info.num_groups} ranks have none (a lower client.group_size makes more groups)"
    facts = {
        "model": config["model"]["name"],
        "method": f"{config['method']['name']}, {info.num_params:,} trained numbers, {decimal(info.payload_bytes)} per update",
        "computed": info.how,
        "data": f"{info.dataset}, {config['partition']['name']} over {info.num_clients:,} clients, cohort {cohort}",
        "ranks": f"{ranks}{started}, backend {info.backend}, {'/'.join(devices)} x {'/'.join(map(str, threads))} threads{shared}",
        "groups": groups,
    }
    place = info.features if info.features in ("", "memory") else str(Path(info.features).parent.parent)
    if info.num_features_computed:
        facts["features"] = f"{info.num_features_computed:,} images encoded, kept in {place}"
    elif place:
        facts["features"] = f"from an earlier run, in {place}"
    if info.earlier:
        last = info.earlier.resumed_after[-1]
        facts["goes on"] = "; ".join([f"after round {last}" if last >= 0 else "from the start", *info.earlier.told])
    if info.num_damaged:
        facts["left out"] = f"{info.num_damaged:,} images that cannot be decoded"
    return facts
