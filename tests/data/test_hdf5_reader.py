"""HDF5 files of other tools: an odd file gives the right labels, or one sentence."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np
import pytest

from flora_hpc.data.datasets import hdf5
from flora_hpc.data.images import Dataset
from flora_hpc.errors import UserError

LABELS = [0, 1, 0, 1]
ROWS = np.empty(4, object)
ROWS[:] = [np.arange(i + 1, dtype=np.uint8) for i in range(4)]
Change = Callable[[h5py.File], object]


def write(path: Path, change: Change = lambda file: None) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs.update(class_names=json.dumps(["cat", "dog"]), encoding="raw")
        for part in ("train", "test"):
            file[f"{part}/images"] = np.full((4, 2, 3, 3), 7, np.uint8)
            file[f"{part}/labels"] = LABELS
        change(file)
    return path


def put(name: str, values: Any, **options: Any) -> Change:
    """Write other values in place of a dataset."""

    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        file.create_dataset(name, data=values, **options)

    return change


def link(name: str, target: object) -> Change:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = target

    return change


def build(path: Path, **options: object) -> Dataset:
    return hdf5.build(hdf5.Options(name="hdf5", path=path, **options))


def mistake(path: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        build(path, **options)
    assert str(caught.value).startswith("data.path: ")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- labels


@pytest.mark.parametrize(
    "labels",
    [
        np.array(LABELS).reshape(-1, 1),
        np.array(LABELS).reshape(1, -1),  # as MATLAB writes a column
        np.array(LABELS, ">i2"),
        np.array(LABELS, np.uint64),
        np.array(LABELS, np.float64),
        np.array(LABELS, bool),
        np.array([b"cat", b"dog", b"cat", b"dog"]),
        np.array(["cat", "dog"] * 2, object).reshape(-1, 1),
        np.array([5, 9, 5, 9]).astype(h5py.enum_dtype({"cat": 5, "dog": 9}, "i4")),
    ],
    ids=lambda labels: f"{labels.dtype}{labels.shape}",
)
def test_labels_that_can_only_mean_one_thing(tmp_path: Path, labels: Any) -> None:
    kind = {"dtype": h5py.string_dtype()} if labels.dtype == object else {}
    dataset = build(write(tmp_path / "a.h5", put("train/labels", labels, **kind)))
    assert dataset.images.labels[dataset.train].tolist() == LABELS
    assert dataset.images.labels.dtype == np.int64


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.array([0, 1, 0, 0.5]), "train/labels[3] is 0.5, and 1 of 4 labels are no whole numbers; each must be"),
        (np.array([0, np.inf, 0, 1]), "train/labels[1] is inf"),
        (np.array([0, 1, 0, 2**64 - 1], np.uint64), "train/labels go from 0 to 18446744073709551615, but there are 2 classes"),
        (
            np.array([b"cat", b"dgo", b"cat", b"dog"]),
            "train/labels[1] is 'dgo', which is no class of class_names; did you mean 'dog'?",
        ),
        (np.array(LABELS).astype(h5py.enum_dtype({"red": 0, "cat": 1}, "i1")), "train/labels[0] is 'red', which is no class"),
        (np.array([1, 2, 1, 2]), "train/labels go from 1 to 2, but there are 2 classes, 0 to 1; write labels - 1"),
        (
            np.array([b"0", b"1"] * 2),
            "train/labels[0] is '0', which is no class of class_names, but a text; write whole numbers: labels.astype(int)",
        ),
        (np.array([b"zebra"] * 4), "is 'zebra', which is no class of class_names; write the numbers of classes, or their names"),
        (np.eye(2, dtype=np.uint8)[LABELS], "must be of shape (4,), one number an image; write labels.argmax(1)"),
        (np.zeros((4, 3)), "train/labels are of shape (4, 3); they must be of shape (4,)"),
        (np.zeros(4, complex), "train/labels are of type complex128; labels must be whole numbers"),
        (np.zeros(4, [("a", "i4")]), "labels must be whole numbers"),
        (np.uint8(1), "train/labels is a single value; it needs one for each of the 4 images"),
        (h5py.Empty("i4"), "train/labels is empty"),
        (np.array([b"cat", b"\xff", b"cat", b"dog"]), "train/labels cannot be read ("),
    ],
)
def test_labels_that_mean_nothing(tmp_path: Path, labels: Any, expected: str) -> None:
    assert expected in mistake(write(tmp_path / "a.h5", put("train/labels", labels)))


def test_labels_that_refer_to_objects(tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        put("test/labels", np.array([file.ref] * 4, h5py.ref_dtype), dtype=h5py.ref_dtype)(file)

    assert "test/labels are of type object; labels must be whole numbers" in mistake(write(tmp_path / "a.h5", change))


def test_names_for_labels_must_differ(tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        file.attrs["class_names"] = json.dumps(["cat", "dog", "cat"])
        put("train/labels", np.array([b"cat", b"dog"] * 2))(file)

    assert "class_names has 'cat' twice; write numbers" in mistake(write(tmp_path / "a.h5", change))


# --- images and other objects


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (put("train/images/0", 1), "train/images"),
        (link("train/images", h5py.SoftLink("/nowhere")), "train/images is a link to /nowhere, where nothing is"),
        (link("train", h5py.ExternalLink("gone.h5", "/part")), "train/images is a link to /part of the file gone.h5, which cannot"),
        (link("test/labels", np.dtype("i4")), "test/labels is a datatype"),
        (put("train/images", np.uint8(1)), "train/images are uint8 of shape ()"),
        (put("train/images", np.zeros((4, 0, 3, 3), np.uint8)), "they have no pixels"),
        (put("train/images", np.zeros((4, 3, 5, 5), np.uint8)), "channels first: write images.transpose(0, 2, 3, 1)"),
        (put("train/images", np.zeros((4, 3, 5, 5))), "write (images * 255).round().astype('uint8') where they go from 0 to 1"),
        (put("train/images", np.zeros((4, 5, 5), ">u2")), "write (images >> 8).astype('uint8') where they go to 65535"),
        (put("train/images", np.zeros((4, 5, 5), bool)), "write images.astype('uint8') * 255"),
        (put("train/images", np.zeros((3, 2, 3, 3), np.uint8)), "train has 3 images and 4 labels"),
        (put("test/images", None, shape=(4, 2, 3, 3), dtype="u1"), "parts of test/images have never been written"),
        (put("test/images", None, shape=(4, 2, 3, 3), dtype="u1", chunks=(2, 2, 3, 3)), "parts of test/images have never been"),
        (put("train/images", ROWS, dtype=h5py.vlen_dtype(np.uint8)), "rows of bytes, but attribute encoding is 'raw'"),
    ],
)
def test_objects_of_another_kind(tmp_path: Path, change: Change, expected: str) -> None:
    def instead(file: h5py.File) -> None:
        if expected == "train/images":
            del file["train/images"]
        change(file)

    assert expected in mistake(write(tmp_path / "a.h5", instead))


def test_pixels_in_a_file_beside_that_is_gone(tmp_path: Path) -> None:
    """One message, not four damaged images."""
    change = put("train/images", None, shape=(4, 2, 3, 3), dtype="u1", external=str(tmp_path / "gone.raw"))
    message = mistake(write(tmp_path / "a.h5", change))
    assert f"train/images lies in {tmp_path / 'gone.raw'}, which cannot be read (No such file or directory); bring it" in message


def test_a_half_written_dataset(tmp_path: Path) -> None:
    """The first block exists; HDF5 reads zeros for the second."""

    def change(file: h5py.File) -> None:
        put("train/images", None, shape=(4, 2, 3, 3), dtype="u1", chunks=(2, 2, 3, 3))(file)
        file["train/images"][:2] = 7

    assert "parts of train/images have never been written" in mistake(write(tmp_path / "a.h5", change))


def test_a_virtual_dataset_needs_its_source(tmp_path: Path) -> None:
    """HDF5 reads zeros where the source is missing. If the source exists, its times are part of the stamp."""

    def change(file: h5py.File) -> None:
        del file["train/images"]
        layout = h5py.VirtualLayout((4, 2, 3, 3), np.uint8)
        layout[:] = h5py.VirtualSource("pixels.h5", "images", (4, 2, 3, 3))
        file.create_virtual_dataset("train/images", layout)

    path = write(tmp_path / "a.h5", change)
    assert "train/images is put together from pixels.h5:images, which is not there" in mistake(path)
    with h5py.File(tmp_path / "pixels.h5", "w") as file:
        file["images"] = np.full((4, 2, 3, 3), 9, np.uint8)
    images = build(path).images
    assert int(images.raw([0])[0].max()) == 9  # type: ignore[union-attr]
    assert images.stamp is not None
    before = images.stamp()
    (tmp_path / "pixels.h5").touch()
    assert images.stamp() != before


@pytest.fixture
def unreadable() -> Iterator[Path]:
    """A folder whose files this user writes and, if this user is root, another user reads."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextmanager
def as_another_user() -> Iterator[None]:
    """Root may read everything."""
    user = os.geteuid()
    os.seteuid(65534 if user == 0 else user)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_source_that_this_user_may_not_read_is_named(unreadable: Path) -> None:
    path, place = unreadable / "a.h5", unreadable / "pixels.h5"
    write(path, virtual("train/images", "pixels.h5"))
    source(place, data=np.ones((4, 2, 3, 3), np.uint8))
    build(path)
    place.chmod(0)
    with as_another_user():
        message = mistake(path)
    assert f"is put together from pixels.h5:images; {place} cannot be read (Permission denied); make it readable" in message


def test_pixels_that_this_user_may_not_read_are_named(unreadable: Path) -> None:
    path, place = unreadable / "a.h5", unreadable / "pixels.raw"
    place.write_bytes(b"\x09" * 72)
    write(path, put("train/images", None, shape=(4, 2, 3, 3), dtype="u1", external=[(str(place), 0, 72)]))
    build(path)
    place.chmod(0)
    with as_another_user():
        message = mistake(path)
    assert f"train/images lies in {place}, which cannot be read (Permission denied); bring it, or make it readable" in message


def virtual(name: str, file_name: str, num_rows: int = 4, source_rows: int = 4) -> Change:
    """A virtual dataset of 4 images, of which the first `num_rows` come from another file."""

    def change(file: h5py.File) -> None:
        del file[name]
        layout = h5py.VirtualLayout((4, 2, 3, 3), np.uint8)
        layout[:num_rows] = h5py.VirtualSource(file_name, "images", (source_rows, 2, 3, 3))[:num_rows]
        file.create_virtual_dataset(name, layout)

    return change


def source(path: Path, num_rows: int = 4, **options: Any) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("images", (num_rows, 2, 3, 3), "u1", **options)


def test_a_virtual_dataset_that_is_partly_of_nothing(tmp_path: Path) -> None:
    """HDF5 reads zeros where no source is mapped, where the source is too small, and where it was never written."""
    source(tmp_path / "p.h5", data=np.ones((4, 2, 3, 3), np.uint8))
    assert build(write(tmp_path / "a.h5", virtual("train/images", "p.h5")))
    message = mistake(write(tmp_path / "b.h5", virtual("train/images", "p.h5", 2)))
    assert "train/images has sources for 36 of its 72 values, so the others would be read as zeros" in message
    source(tmp_path / "p.h5", 3, data=np.ones((3, 2, 3, 3), np.uint8))
    assert "train/images is put together from p.h5:images, which is too small for it" in mistake(tmp_path / "a.h5")
    source(tmp_path / "p.h5", chunks=(1, 2, 3, 3))
    with pytest.raises(UserError, match=r"p\.h5: parts of images have never been written, so they would be read as zeros"):
        build(tmp_path / "a.h5")


def test_a_virtual_dataset_of_numbered_files(tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        del file["train/images"]
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        here = h5py.h5s.create_simple((4, 2, 3, 3), (h5py.h5s.UNLIMITED, 2, 3, 3))
        here.select_hyperslab((0, 0, 0, 0), (h5py.h5s.UNLIMITED, 1, 1, 1), (2, 1, 1, 1), (2, 2, 3, 3))
        settings.set_virtual(here, b"part-%b.h5", b"images", h5py.h5s.create_simple((2, 2, 3, 3)))
        space = h5py.h5s.create_simple((4, 2, 3, 3), (h5py.h5s.UNLIMITED, 2, 3, 3))
        h5py.h5d.create(file.id, b"train/images", h5py.h5t.NATIVE_UINT8, space, settings)

    path = write(tmp_path / "a.h5", change)
    assert "train/images is put together from part-%b.h5:images, which is not there" in mistake(path)
    for number in range(2):
        source(tmp_path / f"part-{number}.h5", 2, data=np.full((2, 2, 3, 3), 5, np.uint8))
    images = build(path).images
    assert [int(np.max(raw)) for raw in images.raw([0, 3])] == [5, 5]
    assert images.stamp is not None
    before = images.stamp()
    (tmp_path / "part-1.h5").touch()
    assert images.stamp() != before


def test_pixels_in_a_file_that_is_cut_off(tmp_path: Path) -> None:
    place = tmp_path / "pixels.raw"
    place.write_bytes(bytes(30))
    change = put("train/images", None, shape=(4, 2, 3, 3), dtype="u1", external=[(str(place), 5, h5py.h5f.UNLIMITED)])
    path = write(tmp_path / "a.h5", change)
    assert f"train/images lies in {place}, which has 30 bytes of 77; copy or fetch that again" in mistake(path)
    place.write_bytes(b"\x09" * 77)
    assert np.max(build(path).images.raw([3])[0]) == 9


@pytest.mark.parametrize("name", ["train/images", "test/labels"])
def test_a_filter_that_is_not_installed_is_named_before_anything_is_decoded(tmp_path: Path, name: str) -> None:
    def change(file: h5py.File) -> None:
        shape, kind = file[name].shape, file[name].dtype
        del file[name]
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_chunk(shape)
        settings.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))
        space = h5py.h5s.create_simple(shape)
        table = h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(kind), space, settings)
        table.write_direct_chunk((0,) * len(shape), b"no such bytes", 0)

    message = mistake(write(tmp_path / "a.h5", change))
    assert (
        f"{name} is compressed with HDF5's filter 32015 (Zstandard), which is not installed here; pip install hdf5plugin" in message
    )
    assert message.count("32015") == 1


def test_columns_of_odd_types_are_none(tmp_path: Path) -> None:
    """A column or a row of numbers is one; compounds, numbers with an imaginary part and dangling links are not."""

    def change(file: h5py.File) -> None:
        for part in ("train", "test"):
            file[f"{part}/writer"] = np.arange(4).reshape(-1, 1)
            file[f"{part}/pair"] = np.zeros(4, [("a", "i4"), ("b", "i4")])
            file[f"{part}/wave"] = np.zeros(4, complex)
            file[f"{part}/gone"] = h5py.SoftLink("/nowhere")
            file[f"{part}/who"] = np.array([b"a", b"\xff", b"c", b"d"])

    images = build(write(tmp_path / "a.h5", change)).images
    assert sorted(images.columns) == ["who", "writer"]
    assert images.column("writer", "key").tolist() == [0, 1, 2, 3] * 2
    with pytest.raises(UserError, match="train/who cannot be read"):
        images.column("who", "key")


# --- attributes


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"class_names": "[]"}, "attribute class_names must be a JSON list of texts"),
        ({"class_names": "[" * 100_000}, "attribute class_names must be a JSON list of texts"),
        ({"class_names": '["cat", " "]'}, "attribute class_names: name 1 holds nothing but blanks"),
        ({"class_names": r'["cat", "\ud800"]'}, "attribute class_names: name 1 holds '\\ud800', half of a pair of UTF-16"),
        ({"class_names": np.bytes_(b'["c\xe4t", "dog"]')}, "attribute class_names is not UTF-8"),
        ({"class_names": 3}, "attribute class_names is "),
        ({"prompt_names": '["a", 1]'}, "attribute prompt_names must be a JSON list of texts"),
        ({"encoding": h5py.Empty("S3")}, "attribute encoding is "),
        ({"encoding": "jpg"}, "attribute encoding is 'jpg'; did you mean 'jpeg'? (it must be raw, jpeg, png or files)"),
        ({"caption": "a photo of a {0.__class__}"}, "attribute caption needs {} once"),
        ({"caption": "a photo of a {:>1000000000}"}, "attribute caption needs {} once"),
        ({"caption": "a photo of a {"}, "attribute caption needs {} once"),
        (
            {"caption": "a photo"},
            "attribute caption needs {} once, where the name of the class goes, and no other braces, not 'a photo'",
        ),
        ({"class_names": r'["cat\u001b[31m", "dog"]'}, "attribute class_names: name 0 holds the control character '\\x1b'"),
        ({"prompt_names": r'["cat", "a\ndog"]'}, "attribute prompt_names: name 1 holds the control character '\\n'"),
        ({"name": "two\nlines"}, "attribute name holds the control character '\\n'; write it without"),
        ({"name": np.arange(2)}, "attribute name is array([0, 1]); it must be one text"),
    ],
)
def test_wrong_attributes(tmp_path: Path, attributes: dict[str, Any], expected: str) -> None:
    assert expected in mistake(write(tmp_path / "a.h5", lambda file: file.attrs.update(attributes)))


def test_a_wrong_template_is_no_matter_where_another_takes_its_place(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", lambda file: file.attrs.update(caption="a {name}"))
    assert build(path, caption="the {}").captions == ("the cat", "the dog")


def test_a_text_may_be_an_array_of_one(tmp_path: Path) -> None:
    assert build(write(tmp_path / "a.h5", lambda file: file.attrs.update(encoding=["raw"], name=[b"zoo"]))).name == "zoo"


# --- files


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (b"PK\x03\x04", "it is a zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "it is a pointer of Git LFS"),
        (b"\n<!DOCTYPE HTML><html>404", "it is a web page or XML"),
        (b"PAR1", "it is a Parquet file"),
        (b"\x1f\x8b\x08", "decompress it with gunzip"),
        (b"\x00" * 257 + b"ustar", "it is a tar archive"),
        (b"", "it is empty); write or fetch it again"),
        (b"text", "a file needs the datasets images and labels in train and in test, and the attributes class_names"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path: Path, start: bytes, expected: str) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(start)
    message = mistake(path)
    assert "is not an HDF5 file" in message
    assert expected in message


def test_a_truncated_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5")
    path.write_bytes(path.read_bytes()[:-100])
    assert "the file is cut off: copy or fetch it again" in mistake(path)


def test_a_file_that_is_still_written(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(tmp_path / "open.h5", "w", libver="v110") as file:
        file["x"] = 1
        file.flush()
        path.write_bytes((tmp_path / "open.h5").read_bytes())
    assert "it is still being written, or its writer was killed); wait for the writer, or run h5clear -s" in mistake(path)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.h5")
    assert "is a folder; give a file" in mistake(tmp_path)
    assert "is a pipe or a device" in mistake(tmp_path / "pipe.h5")
    assert "is an address; files must be here" in mistake(Path("https://example.org/a.h5"))
    assert "is a path of Windows" in mistake(Path("C:\\data\\a.h5"))
    assert "there is no file" in mistake(tmp_path / f"{'a' * 300}.h5")
    assert "no known user" in mistake(Path("~nobody-of-this-name/a.h5"))
