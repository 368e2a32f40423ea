"""Whether two configurations give clients the same work, so that seconds of one say something of the other."""

from typing import Any

from flora_hpc.config import Config

# Sections and keys whose values the drivers stand for, or that change no seconds
FREE = ("seed", "rounds", "partition", "cohort", "comm", "records")
FREE_KEYS = {
    "client": ("epochs", "batch_size", "lr", "weight_decay", "betas", "eps", "momentum", "first_step", "group_size", "shuffle"),
    "evaluate": ("every",),
    "checkpoint": ("on_signal", "keep"),
    "features": ("store",),
}


def difference(own: Config, target: Config) -> str:
    """The first key whose value makes runs of `own` and of `target` different work, with both values; empty for none."""
    one, other = (_work(config.model_dump(mode="json")) for config in (own, target))
    for section in sorted(one.keys() | other.keys()):
        there, here = one.get(section), other.get(section)
        if there == here:
            continue
        if not (isinstance(there, dict) and isinstance(here, dict)):
            return f"{section} ({there} there, {here} here)"
        key = next(
            key
            for key in sorted(there.keys() | here.keys(), key=lambda key: (key != "name", key))
            if there.get(key) != here.get(key)
        )
        return f"{section}.{key} ({there.get(key)} there, {here.get(key)} here)"
    return ""


def _work(tree: dict[str, Any]) -> dict[str, Any]:
    """What must be the same in two configurations for their clients' work to be the same."""
    work = {name: branch for name, branch in tree.items() if name not in FREE}
    for section, keys in FREE_KEYS.items():
        work[section] = {key: value for key, value in work[section].items() if key not in keys}
    return work
