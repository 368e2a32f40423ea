import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from flora_hpc.data import pack as module
from flora_hpc.data.datasets import digits, hdf5, imagefolder, pairs
from flora_hpc.data.images import Dataset, Images, Raw
from flora_hpc.data.pack import pack, template
from flora_hpc.errors import UserError

COLOUR = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), np.uint8)
LABELS = [0, 1, 2, 0, 1, 2]


def file(pixels: Any, form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def animals(stored: Sequence[Raw], captions: Sequence[str] | None = None, **columns: Any) -> Dataset:
    """Images in this order, of which rows 4, 0, 2 are for training and 5, 1, 3 for testing."""
    read = {name: (lambda values=values: np.array(values)) for name, values in columns.items()}
    images = Images(np.array(LABELS), lambda rows: [stored[row] for row in rows], lambda row: f"zoo/{row}", read)
    names = ("cat", "dog", "barn_owl")
    texts = tuple(captions or ("a cat!", "a dog!", "a barn owl!"))
    return Dataset("zoo", names, ("cat", "dog", "barn owl"), texts, images, np.array([4, 0, 2]), np.array([5, 1, 3]))


def load(path: Path) -> Dataset:
    return hdf5.build(hdf5.Options(name="hdf5", path=path))


def raws(dataset: Dataset) -> list[Any]:
    return [raw.tolist() if isinstance(raw, np.ndarray) else raw for raw in dataset.images.raw([*dataset.train, *dataset.test])]


def same(packed: Dataset, dataset: Dataset) -> None:
    """Everything but the places of the images; training rows come first, then test rows."""
    rows = np.concatenate([dataset.train, dataset.test])
    assert (packed.name, packed.class_names, packed.wordings) == (dataset.name, dataset.class_names, dataset.wordings)
    assert packed.captions == dataset.captions
    assert raws(packed) == raws(dataset)
    assert packed.images.labels.tolist() == dataset.images.labels[rows].tolist()
    assert packed.train.tolist() == list(range(len(dataset.train)))
    assert packed.test.tolist() == list(range(len(dataset.train), len(rows)))
    assert sorted(packed.images.columns) == sorted(dataset.images.columns)
    for name in dataset.images.columns:
        assert packed.images.column(name, "").tolist() == dataset.images.column(name, "")[rows].tolist()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "packed.h5"


def left(path: Path) -> list[str]:
    """The files beside `path`."""
    return sorted(other.name for other in path.parent.iterdir())


# --- what is written


@pytest.mark.parametrize("pixels", [COLOUR, COLOUR[:, :, :, :1], COLOUR[:, :, :, 0]], ids=["colour", "one channel", "gray"])
def test_pixels_of_one_shape_stay_pixels(path: Path, pixels: Any) -> None:
    packed = pack(animals(list(pixels)), path)
    assert (packed.num_train, packed.num_test, packed.encoding, packed.damaged, packed.dropped_columns) == (3, 3, "raw", (), ())
    same(load(path), animals(list(pixels)))
    assert left(path) == ["packed.h5"]


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_files_of_one_format(path: Path, form: str) -> None:
    stored = [file(pixels, form) for pixels in COLOUR]
    assert pack(animals(stored), path).encoding == form.lower()
    same(load(path), animals(stored))


def test_files_of_several_formats(path: Path) -> None:
    stored = [file(pixels, form) for pixels, form in zip(COLOUR, ["JPEG", "PNG", "BMP", "JPEG", "TIFF", "GIF"], strict=True)]
    assert pack(animals(stored), path).encoding == "files"
    same(load(path), animals(stored))


def test_files_of_one_other_format(path: Path) -> None:
    stored = [file(pixels, "BMP") for pixels in COLOUR]
    assert pack(animals(stored), path).encoding == "files"
    same(load(path), animals(stored))


@pytest.mark.parametrize(
    "odd", [COLOUR[0, :2], COLOUR[0, :, :, 0], np.dstack([COLOUR[0], COLOUR[0, :, :, 0]])], ids=["size", "gray", "four channels"]
)
@pytest.mark.parametrize("block", [1, 128])
def test_pixels_of_several_shapes_become_png(path: Path, odd: Any, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """PNG keeps the pixels, also if the image of another shape is the last, in its own block or not."""
    monkeypatch.setattr(module, "BLOCK", block)
    stored = [*COLOUR[:3], odd, *COLOUR[4:]]
    assert pack(animals(stored), path).encoding == "png"
    for raw, expected in zip(raws(load(path)), [stored[row] for row in (4, 0, 2, 5, 1, 3)], strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(raw))), expected)


def test_pixels_and_files_together(path: Path) -> None:
    stored = [*COLOUR[:4], file(COLOUR[4], "PNG"), file(COLOUR[5], "JPEG")]
    assert pack(animals(stored), path).encoding == "files"
    assert raws(load(path))[0] == stored[4]
    assert raws(load(path))[3] == stored[5]


def test_columns_of_numbers_and_texts(path: Path) -> None:
    kept = {
        "client": [3, 1, 4, 1, 5, 9],
        "weight": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
        "good": [True, False] * 3,
        "place": ["a", "", "ç", "d", "longer", "f"],
    }
    pack(animals(list(COLOUR), **kept), path)
    same(load(path), animals(list(COLOUR), **kept))


def test_other_columns_are_left_out_and_told(path: Path) -> None:
    """Objects, texts that HDF5 cannot hold, and names that the format needs."""
    other = {
        "pair": np.array([None] * 6),
        "nul": ["\0a"] * 6,
        "half": ["\ud800"] * 6,
        "labels": LABELS,
        "a/b": LABELS,
        "": LABELS,
        "n": LABELS,
    }
    assert pack(animals(list(COLOUR), **other), path).dropped_columns == ("", "a/b", "half", "labels", "nul", "pair")
    assert sorted(load(path).images.columns) == ["n"]


def test_many_blocks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are read in blocks, each once, and `progress` counts every row."""
    monkeypatch.setattr(module, "BLOCK", 2)
    read: list[list[int]] = []
    steps: list[tuple[int, int]] = []
    stored = [file(pixels, "PNG") for pixels in COLOUR]
    dataset = animals(stored)

    def raw(rows: Sequence[int]) -> list[Raw]:
        read.append(list(rows))
        return [stored[row] for row in rows]

    watched = Images(dataset.images.labels, raw, str)
    watched_dataset = Dataset("zoo", dataset.class_names, dataset.wordings, dataset.captions, watched, dataset.train, dataset.test)
    pack(watched_dataset, path, progress=lambda done, total: steps.append((done, total)), num_threads=2)
    assert read == [[4], [4, 0], [2], [5, 1], [3]]  # the first one tells what kind of images they are
    assert steps == [(2, 6), (3, 6), (5, 6), (6, 6)]
    same(load(path), dataset)


def test_the_same_images_give_the_same_file(path: Path) -> None:
    pack(animals(list(COLOUR)), path)
    pack(animals(list(COLOUR)), path.with_name("again.h5"))
    assert path.read_bytes() == path.with_name("again.h5").read_bytes()


def test_chunks_hold_about_a_megabyte(path: Path) -> None:
    """34 images of 100 x 100 x 3 bytes; 256 tiny images."""
    large = np.zeros((6, 100, 100, 3), np.uint8)
    pack(animals(list(large)), path)
    pack(animals(list(COLOUR)), path.with_name("tiny.h5"))
    with h5py.File(path) as big, h5py.File(path.with_name("tiny.h5")) as tiny:
        assert big["train/images"].chunks == (34, 100, 100, 3)
        assert tiny["train/images"].chunks == (256, 4, 5, 3)
        assert tiny["train/images"].compression == "gzip"


# --- real datasets, there and back


def test_digits(path: Path) -> None:
    dataset = digits.build(digits.Options(name="digits"))
    packed = pack(dataset, path)
    assert (packed.num_train, packed.num_test) == (1438, 359)
    same(load(path), dataset)


def test_a_packed_file_packed_again(path: Path) -> None:
    """The output may replace its own input."""
    pack(animals(list(COLOUR)), path)
    before = path.read_bytes()
    pack(load(path), path, replace=True)
    assert path.read_bytes() == before


def test_an_image_folder(path: Path, tmp_path: Path) -> None:
    for number, name in enumerate(["train/cat/anna", "train/big_dog", "test/cat", "test/big_dog/bert"]):
        (tmp_path / "pets" / name).mkdir(parents=True)
        (tmp_path / "pets" / name / "a.jpg").write_bytes(file(COLOUR[number], "JPEG"))
    dataset = imagefolder.build(imagefolder.Options(name="imagefolder", path=tmp_path / "pets", caption="the {}"))
    assert pack(dataset, path).encoding == "jpeg"
    same(load(path), dataset)
    assert load(path).images.column("folder", "").tolist() == ["", "anna", "bert", ""]  # big_dog before cat


def test_pairs_are_refused(path: Path, tmp_path: Path) -> None:
    """As a dataset of classes, pairs would be trained and tested in another way."""
    (tmp_path / "1.png").write_bytes(file(COLOUR[0], "PNG"))
    (tmp_path / "2.png").write_bytes(file(COLOUR[1], "PNG"))
    (tmp_path / "pairs.csv").write_text("image,caption\n1.png,one\n2.png,two\n")
    dataset = pairs.build(pairs.Options(name="pairs", path=tmp_path / "pairs.csv"))
    with pytest.raises(UserError, match="the format has no place for a caption of each image; keep pairs as they are"):
        pack(dataset, path)
    assert not path.exists()


def test_names_of_many_classes(path: Path) -> None:
    """More than 64 kB, the limit of an HDF5 attribute without variable length."""
    names = tuple(f"the caption with number {i}" for i in range(20_000))
    images = animals(list(COLOUR)).images
    pack(Dataset("zoo", names, names, names, images, np.array([0, 1]), np.array([2])), path)
    assert load(path).captions == names


# --- captions


def test_the_caption_is_found_in_the_captions() -> None:
    assert template(animals([])) == "a {}!"


def test_a_name_that_is_in_the_caption_twice() -> None:
    """The first class alone would fit 'a{} photo' as well."""
    images = animals([]).images
    nothing = np.zeros(0, np.int64)
    assert (
        template(Dataset("x", ("a", "b"), ("a", "b"), ("a photo of a", "a photo of b"), images, nothing, nothing))
        == "a photo of {}"
    )


def test_captions_of_no_common_form(path: Path) -> None:
    with pytest.raises(UserError, match="zoo: its captions are not made from the names of its classes"):
        pack(animals(list(COLOUR), captions=["cat", "a dog", "barn owl"]), path)


def test_another_caption(path: Path) -> None:
    pack(animals(list(COLOUR)), path, caption="one {}.")
    assert load(path).captions == ("one cat.", "one dog.", "one barn owl.")
    with pytest.raises(UserError, match=r"caption: needs \{\} once"):
        pack(animals(list(COLOUR)), path.with_name("b.h5"), caption="one")


# --- damage


def damaged(*which: int) -> Dataset:
    return animals([b"" if row in which else file(COLOUR[row], "PNG") for row in range(6)], client=[0, 10, 20, 30, 40, 50])


def test_damaged_images_are_refused_together(path: Path) -> None:
    with pytest.raises(UserError) as caught:
        pack(damaged(0, 3), path)
    assert str(caught.value) == (
        "2 of 6 images of zoo cannot be decoded; mend or remove them, or set data.damaged=skip:\n"
        "  zoo/0: it is empty\n  zoo/3: it is empty"
    )
    assert left(path) == []


def test_only_ten_of_them_are_named(path: Path) -> None:
    """13 images, all but one for training."""
    images = Images(np.zeros(14, np.int64), lambda rows: [COLOUR[0] if row == 13 else b"" for row in rows], str)
    with pytest.raises(UserError) as caught:
        pack(Dataset("x", ("a",), ("a",), ("a",), images, np.arange(12), np.array([12, 13])), path)
    lines = str(caught.value).split("\n")
    assert lines[0].startswith("13 of 14 images")
    assert lines[1:] == [*(f"  {row}: it is empty" for row in range(10)), "  and 3 more"]


def test_damaged_images_are_skipped_where_that_is_asked_for(path: Path) -> None:
    packed = pack(damaged(0, 3), path, damaged="skip")
    assert (packed.num_train, packed.num_test) == (2, 2)
    assert packed.damaged == ("zoo/0: it is empty", "zoo/3: it is empty")
    loaded = load(path)
    assert raws(loaded) == [file(COLOUR[row], "PNG") for row in (4, 2, 5, 1)]
    assert loaded.images.labels.tolist() == [LABELS[row] for row in (4, 2, 5, 1)]
    assert loaded.images.column("client", "").tolist() == [40, 20, 50, 10]


@pytest.mark.parametrize(("which", "kind"), [((4, 0, 2), "training"), ((5, 1, 3), "test")])
def test_no_images_are_left(path: Path, which: tuple[int, ...], kind: str) -> None:
    with pytest.raises(UserError, match=f"zoo has no {kind} images"):
        pack(damaged(*which), path, damaged="skip")
    assert left(path) == []


# --- the file itself


def test_a_file_is_not_replaced_unasked(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(UserError, match="exists already; give another name, or --replace"):
        pack(animals(list(COLOUR)), path)
    assert path.read_text() == "precious"
    pack(animals(list(COLOUR)), path, replace=True)
    same(load(path), animals(list(COLOUR)))


@pytest.mark.parametrize("reason", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interrupted_packing_leaves_nothing_new(path: Path, reason: type[BaseException]) -> None:
    path.write_text("precious")

    def stop(done: int, total: int) -> None:
        assert len(left(path)) == 2  # a file beside it is being written
        raise reason

    with pytest.raises(reason):
        pack(animals(list(COLOUR)), path, progress=stop, replace=True)
    assert left(path) == ["packed.h5"]
    assert path.read_text() == "precious"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is no folder; create it first"):
        pack(animals(list(COLOUR)), tmp_path / "nowhere" / "a.h5")


def test_a_full_disk_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_append", full)
    with pytest.raises(UserError, match=r"packed\.h5 cannot be written \(No space left on device\)"):
        pack(animals(list(COLOUR)), path)
    assert left(path) == []
