"""200 data files with seeded damage: each is read, or refused in one sentence. No traceback, no hang, no half-written file.

Bytes of HDF5's global heap, which holds texts and rows of any length, stay as they are: HDF5 2.0 itself can loop for ever in a
damaged one, and no program that reads through it can end that.
"""

import io
import json
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from flora_hpc.data import look
from flora_hpc.data.checks import checked
from flora_hpc.data.datasets import hdf5, pairs
from flora_hpc.data.decode import decode
from flora_hpc.data.images import Dataset, Images
from flora_hpc.data.pack import pack
from flora_hpc.errors import UserError

CELLS = [
    "",
    "a.png",
    "b.png",
    "x",
    "ü猫",
    "\\",
    "\0",
    "\ud800",
    '"',
    "a" * 300,
    "https://x/y",
    "C:\\a",
    "~",
    "{}",
    "-1",
    "nan",
    "1e999",
]
SIGNS = [
    b",",
    b";",
    b"|",
    b"\t",
    b"\n",
    b"\r",
    b'"',
    b"'",
    b"\\",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b" ",
]
VALUES = [None, True, -1, 2**70, 1e999, [], [[["x"]]], {}, {"a": {"b": 1}}, *CELLS]


def survives(build: Callable[[], Dataset], out: Path) -> bool:
    """Whether a dataset can be read to its end; if not, its refusal is in order. Nothing partial is left in `out`."""
    try:
        dataset = checked(build())
        decode(dataset.images, range(len(dataset.images)))
        for read in dataset.images.columns.values():
            read()
        assert dataset.images.stamp is not None
        dataset.images.stamp()
        pack(dataset, out / "packed.h5", "skip", replace=True)
    except UserError as mistake:
        text = str(mistake)
        assert "\n" not in text or "cannot be decoded" in text
        assert 20 < len(text) < 1500
        text.encode()
        assert "Traceback" not in text
        return False
    except ValidationError:
        return False
    finally:
        assert {file.name for file in out.iterdir()} <= {"packed.h5"}
    return True


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def whole(path: Path, form: int) -> bytearray:
    """A good HDF5 file: plain or compressed pixels or rows of PNG files, in the oldest or the newest format."""
    rows, png = np.empty(6, object), io.BytesIO()
    Image.new("RGB", (4, 4), (200, 10, 60)).save(png, "PNG")
    rows[:] = [np.frombuffer(png.getvalue() + bytes(i), np.uint8) for i in range(6)]
    pixels = np.arange(6 * 48, dtype=np.uint8).reshape(6, 4, 4, 3)
    with h5py.File(path, "w", libver="latest" if form % 2 else "earliest") as file:
        encoding = "png" if form >= 4 else "raw"
        file.attrs.update(class_names=np.bytes_(b'["cat", "dog"]'), encoding=encoding, caption="a {}.")
        for part in ("train", "test"):
            if form >= 4:
                file.create_dataset(f"{part}/images", data=rows, dtype=h5py.vlen_dtype(np.uint8))
            else:
                settings = {"chunks": (2, 4, 4, 3), "compression": "gzip"} if form >= 2 else {}
                file.create_dataset(f"{part}/images", data=pixels, **settings)
            file[f"{part}/labels"] = [0, 1] * 3
            file[f"{part}/who"] = np.array([b"x", b"y"] * 3)
    return bytearray(path.read_bytes())


def outside_heaps(content: bytes) -> list[int]:
    """The bytes that no global heap holds."""
    places, at = set(range(len(content))), content.find(b"GCOL")
    while at >= 0:
        places -= set(range(at, at + int.from_bytes(content[at + 8 : at + 16], "little")))
        at = content.find(b"GCOL", at + 4)
    return sorted(places)


def test_damaged_bytes_of_hdf5(tmp_path: Path, out: Path) -> None:
    path, read = tmp_path / "data.h5", 0
    forms = [bytes(whole(path, form)) for form in range(6)]
    places = [outside_heaps(content) for content in forms]
    for seed in range(80):
        rng, form = random.Random(seed), seed % 6
        content = bytearray(forms[form])
        if seed % 4 == 0:
            content = content[: rng.randrange(len(content))]
        else:
            for _ in range(rng.choice([1, 2, 8, 32])):
                content[rng.choice(places[form])] = rng.choice([0, 1, 255, rng.randrange(256)])
        path = tmp_path / f"{seed}.h5"
        path.write_bytes(content)
        read += survives(lambda path=path: hdf5.build(hdf5.Options(name="hdf5", path=path)), out)
    assert 10 < read < 70


def spoil(file: h5py.File, rng: random.Random) -> None:
    """Another kind of object, type or shape in one place."""
    name = rng.choice(["train", "train/images", "train/labels", "test/labels", "test/images", "train/who"])
    if rng.random() < 0.3:
        attribute = rng.choice(["class_names", "encoding", "caption", "name", "prompt_names"])
        values: list[object] = [3, "", "[]", '["a"]', '["a", "a"]', '["a", 2]', np.bytes_(b"\xff"), np.arange(3), h5py.Empty("S1")]
        file.attrs[attribute] = rng.choice([*values, "{}", "{0.x}", "raw", "files", "[" * 9999, ["a", "b"], '["\\ud800", "b"]'])
        return
    del file[name]
    made = rng.choice(["group", "soft", "external", "type", "never", "values", "virtual", "virtual", "elsewhere", "elsewhere"])
    if made == "group":
        file.create_group(name)["x"] = 1
    elif made in ("soft", "external"):
        file[name] = h5py.SoftLink("/test/labels") if made == "soft" else h5py.ExternalLink("gone.h5", "/x")
    elif made == "virtual":
        shape = rng.choice([(6, 4, 4, 3), (6,), (3, 4, 4, 3), (7,)])
        source = rng.choice(["test/images", "test/labels", "test", "gone", name])
        layout = h5py.VirtualLayout(shape, rng.choice(["u1", "i8"]))
        where = rng.choice([".", file.filename, "gone.h5", "part-%b.h5"])
        rows = rng.choice([slice(None), slice(0, 2), slice(2, None)])
        with suppress(OSError, ValueError):  # h5py takes no pattern without an unlimited part
            layout[rows] = h5py.VirtualSource(where, source, shape, dtype="u1")[rows]
            file.create_virtual_dataset(name, layout)
    elif made == "elsewhere":
        beside = Path(file.filename).with_suffix(".raw")
        beside.write_bytes(bytes(rng.choice([0, 10, 6 * 48, 10_000])))
        parts = [(rng.choice([str(beside), beside.name, "gone.raw"]), rng.choice([0, 5, 2**40]), rng.choice([1, 6 * 48, 2**40]))]
        with suppress(OSError, ValueError):  # h5py takes no part that is larger than what a file can hold
            file.create_dataset(name, rng.choice([(6, 4, 4, 3), (6,)]), rng.choice(["u1", "i8"]), external=parts)
    elif made == "type":
        file[name] = np.dtype("f4")
    elif made == "never":
        file.create_dataset(name, (6,), rng.choice(["u1", "i8", "f4", h5py.vlen_dtype(np.uint8), h5py.string_dtype()]), chunks=(2,))
    else:
        shape = rng.choice([(), (6,), (6, 1), (1, 6), (6, 2), (5,), (0,), (6, 4, 4, 3), (6, 0, 4), (2, 3)])
        kind = rng.choice(["?", "i1", ">i4", "u8", "f2", ">f8", "c8", "S3", [("a", "i4")], h5py.enum_dtype({"cat": 0, "dog": 1})])
        file[name] = np.full(shape, rng.choice([0, 1, 2, 255]), np.uint8).astype(kind)


def test_hdf5_of_another_structure(tmp_path: Path, out: Path) -> None:
    for seed in range(80):
        path = tmp_path / f"{seed}.h5"
        whole(path, seed % 6)
        with h5py.File(path, "r+") as file:
            spoil(file, random.Random(seed))
        survives(lambda path=path: hdf5.build(hdf5.Options(name="hdf5", path=path)), out)


@pytest.mark.parametrize("form", ["gif", "tiff", "webp", "png"])
def test_damaged_pictures_of_several_frames(form: str) -> None:
    """Each is decoded or told to be damaged, and the look at its frames ends."""
    frames, buffer = [Image.new("RGB", (9, 7), (60 * i, 10, 60)) for i in range(4)], io.BytesIO()
    frames[0].save(buffer, form, save_all=True, append_images=frames[1:])
    good, decoded, animated = buffer.getvalue(), 0, 0
    for seed in range(60):
        rng, content = random.Random(seed), bytearray(good)
        if seed % 3 == 0:
            content = content[: rng.randrange(len(content))]
        for _ in range(rng.choice([0, 1, 2, 8]) * bool(content)):
            content[rng.randrange(len(content))] = rng.choice([0, 1, 255, rng.randrange(256)])
        images = Images(np.zeros(1, np.int64), lambda rows, content=bytes(content): [content], lambda row: "picture")
        ((found,),) = [decode(images, [0])]
        decoded += isinstance(found, Image.Image)
        animated += "several frames" in str(look.inspect(images, [0], 1).warnings(images, 0.1))
    assert 5 < decoded < 60
    assert 5 < animated <= decoded


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_spoilt_tables(tmp_path: Path, out: Path, suffix: str) -> None:
    for name in "ab":
        Image.new("L", (2, 2)).save(tmp_path / f"{name}.png")
    read = 0
    for seed in range(40):
        rng = random.Random(seed)
        rows = [{"image": f"{name}.png", "caption": f"caption {name}", "n": 1} for name in "abab"]
        if rng.random() < 0.5:
            rng.choice(rows)[rng.choice(["image", "caption", "n"])] = rng.choice(VALUES if suffix == "jsonl" else CELLS)  # type: ignore[assignment]
        if suffix == "jsonl":
            text = "\n".join(map(json.dumps, rows))
        else:
            text = "\n".join(["image,caption,n", *(",".join(map(str, row.values())) for row in rows)])
        content = bytearray(text.encode(errors="surrogatepass"))
        for _ in range(rng.choice([0, 0, 1, 2, 4])):
            place = rng.randrange(len(content))
            content[place : place + rng.choice([0, 1, 20])] = rng.choice(SIGNS) * rng.choice([1, 1, 3])
        path = tmp_path / f"{seed}.{suffix}"
        path.write_bytes(content)
        read += survives_pairs(path, out)
    assert 5 < read < 35


def survives_pairs(path: Path, out: Path) -> bool:
    """Pairs are not packed: that is refused, like any other mistake, after all has been read."""
    dataset: list[Dataset] = []

    def build() -> Dataset:
        dataset.append(pairs.build(pairs.Options(name="pairs", path=path)))
        return dataset[0]

    survives(build, out)
    return bool(dataset)
