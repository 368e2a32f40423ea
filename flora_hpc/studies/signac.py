"""Let signac and row manage the points of a study: a state point in each run directory, and a workspace that signac reads.

DIR/points/NAME/signac_statepoint.json   the keys of the point, nested: {"client": {"lr": 0.001}, "seed": 0}
DIR/workspace/ID -> ../points/NAME       signac names a directory by the MD5 digest of its state point
DIR/.signac/config                       marks DIR as a project of signac 2
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from flora_hpc.configtree import Layer, apply
from flora_hpc.records.study import FOLDER, Point

STATE_POINT = "signac_statepoint.json"


def write_project(folder: Path) -> None:
    """Mark the directory of a study as a project. Raises OSError."""
    (folder / ".signac").mkdir(exist_ok=True)
    (folder / ".signac" / "config").write_text("schema_version = 2\n")
    (folder / "workspace").mkdir(exist_ok=True)


def write_state_point(folder: Path, point: Point) -> None:
    """Write the state point of a point, and link its directory in the workspace where the file system has links.

    Raises OSError.
    """
    text = json.dumps(nested(point.keys), sort_keys=True)
    (folder / FOLDER / point.name / STATE_POINT).write_text(text)
    digest = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
    with suppress(OSError):  # the link is there, or the file system has no links
        (folder / "workspace" / digest).symlink_to(Path("..", FOLDER, point.name))


def nested(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as a nested mapping, since signac allows no dots in keys."""
    tree: dict[str, Any] = {}
    apply(tree, Layer(keys))
    return tree
