"""Read pairs from WebDataset shards: .tar files with an image `key.jpg` and its caption in `key.txt` or `key.json`."""

import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from glob import glob
from itertools import groupby, islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from flora_hpc.data.datasets._files import IMAGE_SUFFIXES, columns
from flora_hpc.data.datasets._leftout import NO_PART, LeftOut
from flora_hpc.data.datasets._pairs import Pairs
from flora_hpc.data.datasets._paths import why_absent
from flora_hpc.data.images import Raw, stamp
from flora_hpc.data.texts import fault, from_json, shown
from flora_hpc.errors import UserError, reason
from flora_hpc.filekinds import ADDRESS, TAR, kind

TEXTS = (".txt", ".json")
MOST_SHARDS = 1_000_000


def shards(key: str, path: Path) -> list[Path]:
    """The sorted shards of `path`: a file, a folder, or a pattern such as `cc-{000..331}.tar`."""
    if ADDRESS.match(str(path)):
        raise UserError(f"{key}: {why_absent(path)}")
    if os.path.isdir(path):  # noqa: PTH112 -- pathlib raises for names that are too long
        files = sorted(path.glob("*.tar"))
    elif os.path.isfile(path):  # noqa: PTH113
        files = [path]
    else:
        files = []
        for name in islice(_braces(str(path)), MOST_SHARDS + 1):
            files += [Path(match) for match in sorted(glob(name)) or [name]]  # noqa: PTH207 -- Path.glob takes no whole path
            if len(files) > MOST_SHARDS:
                raise UserError(f"{key}: {path} stands for more than {MOST_SHARDS:,} shards; check the numbers in braces")
            if not os.path.isfile(files[-1]):  # noqa: PTH113
                break
    missing = [file for file in files if not os.path.isfile(file)]  # noqa: PTH113
    if missing or not files:
        raise UserError(
            f"{key}: there is no {missing[0] if missing else f'.tar file in {path}'}; give shards, their folder or a pattern"
        )
    return files


def _braces(pattern: str) -> Iterator[str]:
    """Expand a pattern with `{000..331}` or `{train,val}` to texts, lazily, since there may be many."""
    brace = re.search(r"\{([^{}]*)\}", pattern)
    if brace is None:
        yield pattern
        return
    span = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", brace[1])
    numbers = range(int(span[1]), int(span[2]) + 1) if span else ()
    for choice in (f"{n:0{len(span[1])}}" for n in numbers) if span else brace[1].split(","):
        yield from _braces(pattern[: brace.start()] + choice + pattern[brace.end() :])


def pairs(key: str, path: Path, caption_column: str) -> Pairs:
    """Read the pairs of all shards: their captions, and the offsets of their images. Each shard is read once.

    Raises UserError for a damaged shard and for an image without a caption.
    """
    files = shards(key, path)
    captions, names, places, rows, left_out = [], [], [], [], LeftOut(path)
    for number, file in enumerate(files):
        for name, parts in _samples(key, file, left_out).items():
            image, caption, row = _pair(f"{key}: {file}: {name}", parts, caption_column)
            captions.append(caption)
            names.append(image.name)
            places.append((number, image.offset_data, image.size))
            rows.append(row)
    if not captions:
        raise UserError(f"{key}: {path} has no pairs; its shards need members KEY.jpg with KEY.txt or KEY.json")
    shard, offsets, sizes = np.array(places, np.int64).T

    def raw(numbers: Sequence[int]) -> list[Raw]:
        result: list[Raw] = []
        for number, stretch in groupby(numbers, lambda row: int(shard[row])):
            result += _read(files[number], [(int(offsets[row]), int(sizes[row])) for row in stretch])
        return result

    def where(row: int) -> str:
        return f"{files[shard[row]]}: {names[row]}"

    real_paths = [file.resolve() for file in files]
    pictures = [f"{real_paths[number]} {name}" for number, name in zip(shard, names, strict=True)]
    extra_columns = columns([{"path": name} | row for name, row in zip(names, rows, strict=True)])
    return Pairs(captions, pictures, raw, where, extra_columns, lambda: stamp(files), left_out.reasons())


def _samples(key: str, file: Path, left_out: LeftOut) -> dict[str, dict[str, Any]]:
    """The members of a shard by key and suffix: a text, or the header of an image. Counts other members in `left_out`."""
    samples: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                place = PurePosixPath(member.name)
                stem, dot, suffix = place.name.partition(".")
                suffix = (dot + suffix).lower()
                if member.isreg() and (not stem or suffix not in IMAGE_SUFFIXES + TEXTS):
                    left_out.add(NO_PART, str(file / member.name))
                elif member.isreg():
                    parts = samples.setdefault(str(place.with_name(stem)), {})
                    if suffix in parts:
                        raise UserError(f"{key}: {file} has {member.name} twice; give the samples of a shard keys of their own")
                    if member.issparse():
                        raise UserError(f"{key}: {file}: {member.name} is stored with holes; write the shard without --sparse")
                    parts[suffix] = tar.extractfile(member).read().decode("utf-8-sig") if suffix in TEXTS else member  # type: ignore[union-attr]
            _check_end(tar)
    except UserError:
        raise
    except UnicodeDecodeError:
        raise UserError(f"{key}: {file}: {member.name} is not UTF-8; save it in that encoding") from None
    except Exception as error:  # tarfile raises anything on broken files
        what = kind(file)
        why = f"it is {what}" if what not in (None, TAR) else reason(error)
        raise UserError(f"{key}: {file} is not a whole, uncompressed .tar file ({why}); unpack or fetch it again") from None
    return samples


def _check_end(tar: tarfile.TarFile) -> None:
    """Raise ReadError unless the members stop at the end mark: tarfile takes a broken header for the end, without an error."""
    source = tar.fileobj
    assert source is not None
    source.seek(tar.offset)
    if source.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"its member at byte {tar.offset:,} is damaged")


def _pair(place: str, parts: dict[str, Any], caption_column: str) -> tuple[tarfile.TarInfo, str, dict[str, Any]]:
    """The image of a sample, its caption, and the other entries of its JSON."""
    try:
        row = from_json(parts.get(".json", "{}"))
    except ValueError as error:
        raise UserError(f"{place}.json is not JSON ({error}); mend it or take the sample out") from None
    if not isinstance(row, dict):
        raise UserError(f"{place}.json must be an object, with the caption as '{caption_column}'; mend it or take the sample out")
    images = [parts[suffix] for suffix in IMAGE_SUFFIXES if suffix in parts]
    if not images:
        raise UserError(f"{place} has no image ({', '.join(IMAGE_SUFFIXES)}); add it or take the sample out")
    if len(images) > 1:
        two = " and ".join(PurePosixPath(image.name).name for image in images[:2])
        raise UserError(f"{place} has two images, {two}; give each a key of its own, with its caption")
    value = row.pop(caption_column, None)
    caption = parts.get(".txt", value)
    if not isinstance(caption, str) or not caption.strip():
        is_other = "" if caption is None or isinstance(caption, str) else f", but {shown(caption)}"
        raise UserError(f"{place} has no caption{is_other}; add it as .txt, or to .json as '{caption_column}'")
    if (sign := fault(caption)) is not None:
        raise UserError(f"{place}: its caption holds {sign}; mend it or take the sample out")
    return images[0], caption.strip(), row


def _read(file: Path, places: Sequence[tuple[int, int]]) -> list[Raw]:
    """Read the bytes at (offset, size) of one shard; the error for each if the shard cannot be read."""
    try:
        result: list[Raw] = []
        with file.open("rb") as tar:
            for offset, size in places:
                tar.seek(offset)
                result.append(tar.read(size))
        return result
    except OSError as error:
        return [error] * len(places)
