"""result.json: written whole, read with care, since another site may have written it."""

import json
from pathlib import Path
from typing import Any

from flora_hpc.bench.cluster import layout
from flora_hpc.bench.cluster.measure import RESULT_SCHEMA
from flora_hpc.errors import UserError, reason
from flora_hpc.records import disk

NAME = "result.json"
OF_CLASS = ("name", "version", "digest", "scaling", "fraction")


def refuse_used(out: Path) -> None:
    """Make the directory of a result. Raises UserError where there is one already, or where nothing can be written."""
    for name in (NAME, "run.h5", "config.yaml"):
        if (out / name).exists():
            raise UserError(f"--out {out}: already holds {name}; choose another directory, or remove this one")
    try:
        out.mkdir(parents=True, exist_ok=True)
        disk.write_whole(out / NAME, "")
        (out / NAME).unlink()
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({reason(error)}); choose a directory that can") from None


def write(out: Path, result: dict[str, Any]) -> Path:
    """Write result.json, whole or not at all. Raises UserError when it cannot be written."""
    try:
        disk.write_whole(out / NAME, json.dumps(result, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"{out / NAME}: cannot be written ({reason(error)}); make room, and measure again") from None
    return out / NAME


def read(path: Path) -> dict[str, Any]:
    """The result in a file, or in a directory's result.json.

    Raises UserError for a file that is missing, damaged, of another kind, or of another version.
    """
    file = path / NAME if path.is_dir() else path
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({reason(error)}); give a {NAME} of `flora-hpc bench cluster`") from None
    except (ValueError, RecursionError):
        raise UserError(f"{file}: is no JSON, or only a part of it; copy it again from where it was measured") from None
    if not isinstance(result, dict) or "result_schema" not in result:
        raise UserError(f"{file}: is no result of `flora-hpc bench cluster`; give its {NAME}")
    if result["result_schema"] != RESULT_SCHEMA:
        raise UserError(
            f"{file}: has version {result['result_schema']} of the format, and this program reads {RESULT_SCHEMA}; "
            "read it with the program that wrote it"
        )
    if wrong := layout.problem(result):
        raise UserError(f"{file}: is damaged: {wrong}; copy it again from where it was measured")
    return result
