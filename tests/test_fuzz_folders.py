"""Fifty folders as no tool would write them: each becomes a dataset, or one sentence says what is wrong. Seeded."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flora_hpc.data.datasets import imagefolder
from flora_hpc.data.datasets._walk import is_hidden
from flora_hpc.data.look import inspect
from flora_hpc.errors import UserError

WORDS = "cat|dog|train|Test|val|a b|-x|%s{}|é|e\u0301|名|x.jpg|[red]|~|a\nb|\x1b[31m|\t|.hidden|__MACOSX|..x|con|*|'|\\"
NAMES = [*WORDS.encode().split(b"|"), b"caf\xe9", b"A" * 200]
SUFFIXES = b"|.jpg|.PNG|.gif|.jfif|.heic|.tiff|.webp|.txt|.zip|.jpg.part|.|.\xff".split(b"|")
STARTS = b"||\0\0\0\0|\xff\xd8\xff|GIF89a|\x89PNG\r\n\x1a\n|PK\x03\x04|%PDF|BM|P6 |RIFF|<html>|version https".split(b"|")

Rng = np.random.Generator
Made = list[Path]


def pick(rng: Rng, choices: list[bytes]) -> str:
    return os.fsdecode(choices[rng.integers(len(choices))])


def content(rng: Rng) -> bytes:
    """An image of some form, whole or cut or with a few wrong bytes; or the beginning of something else."""
    if rng.random() < 0.3:
        return STARTS[rng.integers(len(STARTS))] + rng.bytes(int(rng.integers(30)))
    mode = ["RGB", "L", "P", "RGBA", "1", "LA", "CMYK"][rng.integers(7)]
    form = "TIFF" if mode == "CMYK" else ["PNG", "TIFF", "GIF"][rng.integers(3)]
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (*rng.integers(1, 9, 2), 3), np.uint8)).convert(mode).save(buffer, form)
    data = bytearray(buffer.getvalue())
    if rng.random() < 0.3:
        data[int(rng.integers(len(data)))] = int(rng.integers(256))
    return bytes(data[: int(rng.integers(len(data)))] if rng.random() < 0.2 else data)


def put_file(rng: Rng, folder: Path, made: Made) -> Path:
    path = folder / (pick(rng, NAMES)[:150] + pick(rng, SUFFIXES))
    if not path.exists() and not path.is_symlink():
        path.write_bytes(content(rng))
    return path


def put_folder(rng: Rng, folder: Path, made: Made) -> Path:
    path = folder / pick(rng, NAMES)
    if not path.exists() and not path.is_symlink():
        path.mkdir()
    return path


def put_link(rng: Rng, folder: Path, made: Made) -> Path:
    path = folder / (pick(rng, NAMES)[:150] + pick(rng, SUFFIXES))
    targets = [*map(Path, (".", "..", "../..", "/nowhere", path.name, "/dev/null")), *made]
    target = targets[rng.integers(len(targets))]
    if not path.exists() and not path.is_symlink():
        path.symlink_to(target)
    return path


def put_hard_link(rng: Rng, folder: Path, made: Made) -> Path:
    path, files = folder / f"hard{rng.integers(99)}.png", [path for path in made if path.is_file() and not path.is_symlink()]
    if files and not path.exists():
        os.link(files[rng.integers(len(files))], path)
    return path


def put_pipe(rng: Rng, folder: Path, made: Made) -> Path:
    path = folder / f"pipe{rng.integers(99)}.jpg"
    if not path.exists():
        os.mkfifo(path)
    return path


PUTS: list[Callable[[Rng, Path, Made], Path]] = [*[put_file] * 8, *[put_folder] * 4, put_link, put_hard_link, put_pipe]


def make(rng: Rng, root: Path) -> Path:
    """A folder of some classes that would do, and then up to 40 things in random places of it."""
    root.mkdir()
    made = [root]
    for name in ("cat", "dog") if rng.random() < 0.8 else ():
        made += [root / name]
        made[-1].mkdir()
        Image.new("RGB", (4, 4), (9, 9, len(name))).save(made[-1] / "0.png")
        Image.new("RGB", (4, 4), (9, 200, 9)).save(made[-1] / "1.png")
    for _ in range(rng.integers(40)):
        folders = [path for path in made if path.is_dir() and not path.is_symlink()]
        made.append(PUTS[rng.integers(len(PUTS))](rng, folders[rng.integers(len(folders))], made))
    return root


def num_files(root: Path) -> int:
    """Files below, but not in hidden folders, which count as one thing each."""
    number = 0
    for _, folders, names in os.walk(root):
        number += len(names)
        folders[:] = [name for name in folders if not is_hidden(name)]
    return number


@pytest.mark.filterwarnings("ignore")  # Pillow's remarks on broken files
def test_a_folder_is_read_or_refused_in_one_sentence(tmp_path: Path) -> None:
    refused = []
    for seed in range(50):
        root = make(np.random.default_rng(seed), tmp_path / str(seed))
        try:
            dataset = imagefolder.build(imagefolder.Options(name="imagefolder", path=root))
        except UserError as error:
            refused.append(str(error))
            continue
        paths = [os.path.realpath(root / path) for path in dataset.images.column("path", "key")]
        assert len(set(paths)) == len(paths), "every file once"
        assert len(paths) + sum(dataset.left_out.values()) >= num_files(root), "every file is an image or is counted"
        rows = range(len(paths))
        lines = [*dataset.left_out, *map(dataset.images.where, rows), *dataset.captions]
        lines += inspect(dataset.images, rows, num_threads=2).damaged.values()
        assert not [line for line in lines if b"\n" in line.encode()], "one line, in UTF-8"
        dataset.images.stamp()  # type: ignore[misc]
    for sentence in refused:
        assert sentence.startswith("data.path: "), sentence
        assert sentence.encode().count(b"\n") == 0, sentence
    assert 5 < len(refused) < 45, "some of both kinds, or nothing is tried"
