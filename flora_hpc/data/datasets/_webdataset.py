"""Pairs from WebDataset shards: .tar files in which `key.jpg` is followed by its caption, `key.txt` or in `key.json`."""

import json
import re
import tarfile
from collections.abc import Sequence
from glob import glob
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from flora_hpc.data.datasets._files import SUFFIXES, columns
from flora_hpc.data.datasets._pairs import Pairs
from flora_hpc.data.images import Raw, stamp
from flora_hpc.errors import UserError

TEXTS = (".txt", ".json")


def shards(key: str, path: Path) -> list[Path]:
    """The shards that `path` stands for, sorted: one, those in a folder, or those of a pattern such as `cc-{000..331}.tar`."""
    if path.is_dir():
        found = sorted(path.glob("*.tar"))
    elif path.is_file():
        found = [path]
    else:
        found = []
        for name in _braces(str(path)):
            found += [Path(match) for match in sorted(glob(name)) or [name]]  # noqa: PTH207 -- Path.glob takes no whole path
    missing = [file for file in found if not file.is_file()]
    if missing or not found:
        raise UserError(
            f"{key}: there is no {missing[0] if missing else f'.tar file in {path}'}; give shards, their folder or a pattern"
        )
    return found


def _braces(pattern: str) -> list[str]:
    """Every text that a pattern with `{000..331}` or `{train,val}` stands for."""
    brace = re.search(r"\{([^{}]*)\}", pattern)
    if brace is None:
        return [pattern]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", brace[1])
    choices = [f"{n:0{len(span[1])}}" for n in range(int(span[1]), int(span[2]) + 1)] if span else brace[1].split(",")
    return [text for choice in choices for text in _braces(pattern[: brace.start()] + choice + pattern[brace.end() :])]


def pairs(key: str, path: Path, caption_column: str) -> Pairs:
    """The pairs of all shards; each shard is read through once, for its captions and for where its images lie.

    Raises UserError for a shard that is damaged and for an image without its caption.
    """
    files = shards(key, path)
    captions, names, places, rows = [], [], [], []
    for number, file in enumerate(files):
        for name, parts in _samples(key, file).items():
            image, caption, row = _pair(f"{key}: {file}: {name}", parts, caption_column)
            captions.append(caption)
            names.append(image.name)
            places.append((number, image.offset_data, image.size))
            rows.append(row)
    if not captions:
        raise UserError(f"{key}: {path} has no pairs; its shards need members KEY.jpg with KEY.txt or KEY.json")
    shard, offsets, sizes = np.array(places, np.int64).T

    def raw(wanted: Sequence[int]) -> list[Raw]:
        result: list[Raw] = []
        for number, stretch in groupby(wanted, lambda row: int(shard[row])):
            result += _read(files[number], [(int(offsets[row]), int(sizes[row])) for row in stretch])
        return result

    def where(row: int) -> str:
        return f"{files[shard[row]]}: {names[row]}"

    real = [file.resolve() for file in files]
    pictures = [f"{real[number]} {name}" for number, name in zip(shard, names, strict=True)]
    known = columns([{"path": name} | row for name, row in zip(names, rows, strict=True)])
    return Pairs(captions, pictures, raw, where, known, lambda: stamp(files))


def _samples(key: str, file: Path) -> dict[str, dict[str, Any]]:
    """The members of a shard by key and suffix; of those that hold texts, the text."""
    samples: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                place = PurePosixPath(member.name)
                stem, dot, suffix = place.name.partition(".")
                suffix = (dot + suffix).lower()
                if member.isreg() and stem and suffix in SUFFIXES + TEXTS:
                    parts = samples.setdefault(str(place.with_name(stem)), {})
                    if suffix in parts:
                        raise UserError(f"{key}: {file} has {member.name} twice; give the samples of a shard keys of their own")
                    parts[suffix] = tar.extractfile(member).read().decode("utf-8-sig") if suffix in TEXTS else member  # type: ignore[union-attr]
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{key}: {file} is not a whole, uncompressed .tar file ({error}); unpack or fetch it again") from None
    except UnicodeDecodeError:
        raise UserError(f"{key}: {file}: {member.name} is not UTF-8; save it in that encoding") from None
    return samples


def _pair(place: str, parts: dict[str, Any], caption_column: str) -> tuple[tarfile.TarInfo, str, dict[str, Any]]:
    """A sample's image, its caption, and what else its JSON says."""
    try:
        row = json.loads(parts.get(".json", "{}"))
    except ValueError as error:
        raise UserError(f"{place}.json is not JSON ({error}); mend it or take the sample out") from None
    if not isinstance(row, dict):
        raise UserError(f"{place}.json must be an object, with the caption as '{caption_column}'; mend it or take the sample out")
    images = [parts[suffix] for suffix in SUFFIXES if suffix in parts]
    if not images:
        raise UserError(f"{place} has no image ({', '.join(SUFFIXES)}); add it or take the sample out")
    said = row.pop(caption_column, None)
    caption = parts.get(".txt", said)
    if not isinstance(caption, str) or not caption.strip():
        raise UserError(f"{place} has no caption; add it as .txt, or to .json as '{caption_column}'")
    return images[0], caption.strip(), row


def _read(file: Path, places: Sequence[tuple[int, int]]) -> list[Raw]:
    """The bytes (offset, size) of one shard, or why they cannot be read."""
    try:
        result: list[Raw] = []
        with file.open("rb") as tar:
            for offset, size in places:
                tar.seek(offset)
                result.append(tar.read(size))
        return result
    except OSError as error:
        return [error] * len(places)
