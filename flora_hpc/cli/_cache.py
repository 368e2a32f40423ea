"""`flora-hpc data cache`: list, check and remove the stored features."""

import json
import math
import sys
import time
from datetime import datetime
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from flora_hpc.cli._args import AsJson
from flora_hpc.config import FeaturesConfig
from flora_hpc.errors import UserError, did_you_mean, reason

UNFINISHED_SECONDS = 3600.0  # an incomplete set without a new block for this long has no living writer


def cache(
    remove: Annotated[
        list[str] | None, typer.Option("--remove", metavar="KEY", help="remove these features; the first letters suffice")
    ] = None,
    unused_days: Annotated[
        float | None, typer.Option(min=0, help="remove features that no run has used for so many days", show_default=False)
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="read all of it, and compare it with its digest")] = False,
    store: Annotated[str, typer.Option(metavar="FOLDER", help="as features.store in a configuration")] = "auto",
    as_json: AsJson = False,
) -> None:
    """List the features that are kept for later runs; remove some of them."""
    from flora_hpc.data import store as features  # torch takes seconds to import
    from flora_hpc.embed import folder_of

    folder = folder_of(FeaturesConfig(store=store))
    if folder is None:
        raise UserError("--store: none keeps nothing; give a folder")
    if store != "auto" and not folder.is_dir():
        raise UserError(f"--store: there is no folder {folder}")
    entries = features.Store(folder).entries() if folder.is_dir() else []
    now = time.time()
    unused_seconds = math.inf if unused_days is None else unused_days * 86400
    unused = [entry for entry in entries if now - entry.used > max(unused_seconds, grace_seconds(entry))]
    removed = {entry.path: entry for entry in [*unused, *matching(entries, remove or [])]}
    for entry in removed.values():
        try:
            features.remove(entry)
        except OSError as error:  # the file of another user
            raise UserError(f"{entry.path}: cannot be removed ({reason(error)}); ask whose it is") from None
    kept = [entry for entry in entries if entry.path not in removed]
    rows = [
        {
            "key": entry.key,
            "dataset": entry.facts.get("dataset", ""),
            "model": entry.facts.get("model", ""),
            "images": int(entry.facts.get("images", 0)),
            "precision": entry.facts.get("precision", ""),
            "bytes": entry.num_bytes,
            "used": datetime.fromtimestamp(entry.used).astimezone().isoformat(timespec="seconds"),
            "state": state(entry, features.is_sound if check else None),
        }
        for entry in kept
    ]
    if as_json:
        freed = sum(entry.num_bytes for entry in removed.values())
        json.dump(
            {
                "store": str(folder),
                "removed": sorted({entry.key for entry in removed.values()}),
                "freed_bytes": freed,
                "features": rows,
            },
            sys.stdout,
        )
        print()
        return
    show(Console(highlight=False), str(folder), rows)
    if removed:
        print(f"removed {len(removed)}, {decimal(sum(entry.num_bytes for entry in removed.values()))}")
    elif unused_days is not None:
        print(f"removed nothing: all of it was used in the last {unused_days:g} days")


def grace_seconds(entry: Any) -> float:
    """For how many seconds without a new block features may still be computed."""
    return 0.0 if entry.complete else UNFINISHED_SECONDS


def matching(entries: list[Any], prefixes: list[str]) -> list[Any]:
    """The entries whose keys begin with one of `prefixes`. Raises UserError for a prefix of no key, or of several."""
    result = []
    for start in prefixes:
        fitting = [entry for entry in entries if entry.key.startswith(start)]
        if len({entry.key for entry in fitting}) != 1 or not start:
            nearest = did_you_mean(start, [entry.key for entry in entries])
            many = f"{len(fitting)} features begin so; give more letters" if fitting else f"there are no such features{nearest}"
            raise UserError(f"--remove {start}: {many}")
        result += fitting
    return result


def state(entry: Any, is_sound: Any) -> str:
    """'unfinished' or 'complete'; with `is_sound`, which reads all features, 'sound' or 'DAMAGED' for a complete set."""
    if not entry.complete:
        return "unfinished"
    if is_sound is None:
        return "complete"
    return "sound" if is_sound(entry.path) else "DAMAGED: remove it"


def ago(seconds: float) -> str:
    """90 -> '1 min ago', 7200 -> '2 h ago', 259200 -> '3 days ago'."""
    for size, unit in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} ago"
    return "just now"


def show(console: Console, folder: str, rows: list[dict[str, Any]]) -> None:
    """Print the sets of features as a table."""
    table = Table(title=Text(f"features in {folder}"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("key", "dataset", "model", "images", "size", "used", "state"):
        table.add_column(heading, justify="right" if heading in ("images", "size", "used") else "left", no_wrap=heading != "model")
    for row in rows:
        model = ", ".join(filter(None, [row["model"] or "?", "" if row["precision"] == "fp32" else row["precision"]]))
        images = f"{row['images']:,}" if row["images"] else "?"
        used = ago(time.time() - datetime.fromisoformat(row["used"]).timestamp())
        names = Text(row["dataset"] or "?"), Text(model)  # as Text, since brackets in names are no markup
        table.add_row(row["key"][:12], *names, images, decimal(row["bytes"]), used, row["state"])
    if rows:
        console.print(table)
    total = decimal(sum(row["bytes"] for row in rows))
    console.print(
        f"{len(rows)} sets of features, {total}" if rows else "nothing is kept here; `flora-hpc run` and `data embed` fill it"
    )
