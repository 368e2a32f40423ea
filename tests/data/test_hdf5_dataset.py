import io
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from flora_hpc import configfile
from flora_hpc.data.datasets import hdf5
from flora_hpc.data.decode import DamagedError, decode, rgb
from flora_hpc.data.images import Dataset
from flora_hpc.errors import UserError

GRAY = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 1), np.uint8)  # height 4, width 5
COLOUR = np.random.default_rng(1).integers(0, 256, (6, 4, 5, 3), np.uint8)
LABELS = [0, 1, 2, 0, 1, 2]
NAMES = ["cat", "dog", "owl"]
ATTRIBUTES = {"class_names": json.dumps(NAMES), "encoding": "raw"}


def write(
    path: Path, images: Any = COLOUR, labels: Any = LABELS, dtype: Any = None, without: str = "", **attributes: object
) -> Path:
    """A file in the documented format; the first four examples are for training, all are in `test`."""
    tables = {"train/images": images[:4], "train/labels": labels[:4], "test/images": images, "test/labels": labels}
    with h5py.File(path, "w") as file:
        for name, values in tables.items():
            if name != without:
                file.create_dataset(name, data=values, dtype=dtype if name.endswith("images") else None)
        file.attrs.update({name: value for name, value in (ATTRIBUTES | attributes).items() if name != without})
    return path


def encode(images: Any, form: str) -> Any:
    """One variable-length uint8 row per image, the bytes of an image file."""
    rows = np.empty(len(images), object)
    for i, pixels in enumerate(images):
        file = io.BytesIO()
        Image.fromarray(pixels.squeeze()).save(file, form)
        rows[i] = np.frombuffer(file.getvalue(), np.uint8)
    return rows


def build(path: Path, **options: object) -> Dataset:
    return hdf5.build(hdf5.Options(name="hdf5", path=path, **options))


def pixels(dataset: Dataset) -> Any:
    """The test images, decoded."""
    return np.stack([np.asarray(rgb(raw)) for raw in dataset.images.raw(dataset.test.tolist())])


def damage(dataset: Dataset) -> dict[str, str]:
    """The damaged test images: place -> reason."""
    decoded = {
        dataset.images.where(row): image for row, image in zip(dataset.test, decode(dataset.images, dataset.test), strict=True)
    }
    return {where: str(image) for where, image in decoded.items() if isinstance(image, DamagedError)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "animals.h5"


def mistake(path: Path, **options: object) -> str:
    """The message that refuses the file, with its path."""
    with pytest.raises(UserError) as caught:
        build(path, **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


# --- good files


def test_raw_colour_images(path: Path) -> None:
    np.testing.assert_array_equal(pixels(build(write(path))), COLOUR)


def test_raw_gray_images_become_rgb(path: Path) -> None:
    np.testing.assert_array_equal(pixels(build(write(path, GRAY))), np.repeat(GRAY, 3, axis=3))


def test_png_rows(path: Path) -> None:
    rows = encode(COLOUR, "PNG")
    np.testing.assert_array_equal(pixels(build(write(path, rows, dtype=h5py.vlen_dtype(np.uint8), encoding="png"))), COLOUR)


def test_jpeg_rows_some_of_them_gray(path: Path) -> None:
    """Images of one colour each, which JPEG keeps."""
    even = np.repeat([10, 20, 30, 40, 50, 60], 8 * 8).reshape(6, 8, 8).astype(np.uint8)
    rows = np.concatenate([encode(even[:3], "JPEG"), encode(np.repeat(even[3:, :, :, None], 3, axis=3), "JPEG")])
    decoded = pixels(build(write(path, rows, dtype=h5py.vlen_dtype(np.uint8), encoding="jpeg")))
    np.testing.assert_allclose(decoded, np.repeat(even[:, :, :, None], 3, axis=3), atol=1)


def test_train_and_test_have_their_own_labels(path: Path) -> None:
    dataset = build(write(path))
    assert dataset.images.labels[dataset.train].tolist() == [0, 1, 2, 0]
    assert dataset.images.labels[dataset.test].tolist() == LABELS
    assert dataset.images.labels.dtype == np.int64


def test_images_can_be_read_in_any_order(path: Path) -> None:
    """Four training images come first."""
    images = build(write(path)).images.raw([6, 7, 1, 9, 0])
    np.testing.assert_array_equal(np.stack(images), COLOUR[[2, 3, 1, 5, 0]])


def test_files_of_any_kind_as_they_are(path: Path) -> None:
    rows = np.concatenate([encode(COLOUR[:2], "PNG"), encode(COLOUR[2:4], "BMP"), encode(COLOUR[4:], "TIFF")])
    dataset = build(write(path, rows, dtype=h5py.vlen_dtype(np.uint8), encoding="files"))
    np.testing.assert_array_equal(pixels(dataset), COLOUR)
    assert dataset.images.raw([6]) == [rows[2].tobytes()]


def test_other_tables_as_long_are_columns(path: Path) -> None:
    """Columns of both parts; `note` is in one part only, and `mean` has another length."""
    with h5py.File(write(path), "r+") as file:
        file["train/client"], file["test/client"] = np.arange(4), np.arange(6) + 10
        file["train/place"], file["test/place"] = ["a", "b", "ç", ""], ["x"] * 6
        file["train/note"] = np.arange(4)
        file["train/mean"], file["test/mean"] = np.zeros(3), np.zeros(3)
    images = build(path).images
    assert sorted(images.columns) == ["client", "place"]
    assert images.column("client", "key").tolist() == [0, 1, 2, 3, 10, 11, 12, 13, 14, 15]
    assert images.column("place", "key").tolist() == ["a", "b", "ç", "", *["x"] * 6]


def test_a_merged_split_is_drawn_from_both_parts(path: Path) -> None:
    """Of 4, 3 and 3 images of the classes, half each: 2, 2 and 2 (rounded half to even)."""
    dataset = build(write(path), split="merged", test_fraction=0.5)
    assert np.bincount(dataset.images.labels[dataset.test]).tolist() == [2, 2, 2]
    assert sorted([*dataset.train, *dataset.test]) == list(range(10))


def test_the_stamp_changes_with_the_file(path: Path) -> None:
    stamp = build(write(path)).images.stamp
    assert stamp is not None
    before = stamp()
    assert stamp() == before
    path.write_bytes(b"another")
    assert stamp() != before


def test_captions_use_the_class_names(path: Path) -> None:
    dataset = build(write(path))
    assert dataset.class_names == ("cat", "dog", "owl")
    assert dataset.captions == ("a photo of a cat.", "a photo of a dog.", "a photo of a owl.")


def test_captions_use_the_prompt_names_where_there_are_any(path: Path) -> None:
    dataset = build(write(path, prompt_names=json.dumps(["tabby", "hound", "barn owl"])), caption="a {}, a type of pet.")
    assert dataset.class_names == ("cat", "dog", "owl")
    assert dataset.captions == ("a tabby, a type of pet.", "a hound, a type of pet.", "a barn owl, a type of pet.")


def test_the_file_may_bring_its_caption(path: Path) -> None:
    write(path, caption="a {} in the wild")
    assert build(path).captions[0] == "a cat in the wild"
    assert build(path, caption="the {}").captions[0] == "the cat"


def test_the_name_is_the_attribute_or_else_the_files(path: Path) -> None:
    assert build(write(path)).name == "animals"
    assert build(write(path.with_name("b.h5"), name="zoo")).name == "zoo"


def test_attributes_may_be_strings_of_fixed_length(path: Path) -> None:
    """Tools other than h5py write such attributes."""
    names = np.bytes_(json.dumps(NAMES).encode())
    dataset = build(write(path, name=np.bytes_(b"zoo"), encoding=np.bytes_(b"raw"), class_names=names))
    assert (dataset.name, dataset.class_names) == ("zoo", ("cat", "dog", "owl"))
    np.testing.assert_array_equal(pixels(dataset), COLOUR)


# --- mistakes


def test_a_missing_file_is_named_with_its_neighbour(path: Path) -> None:
    write(path)
    assert "did you mean 'animals.h5'?" in mistake(path.with_name("animal.h5"))


def test_a_missing_folder(tmp_path: Path) -> None:
    assert "there is no file" in mistake(tmp_path / "nowhere" / "animals.h5")


def test_a_text_file(path: Path) -> None:
    path.write_text("cat, dog, owl")
    message = mistake(path)
    assert "is not an HDF5 file" in message
    assert "a file needs the datasets images and labels in train and in test" in message
    assert "attributes class_names (a JSON list) and encoding (raw, jpeg, png or files)" in message


@pytest.mark.parametrize("missing", ["train/images", "train/labels", "test/images", "test/labels", "class_names", "encoding"])
def test_something_is_missing(path: Path, missing: str) -> None:
    message = mistake(write(path, without=missing))
    assert f"lacks {'' if '/' in missing else 'attribute '}{missing};" in message
    assert "a file needs the datasets images and labels in train and in test" in message
    assert "attributes class_names (a JSON list) and encoding (raw, jpeg, png or files)" in message


@pytest.mark.parametrize(("labels", "span"), [([0, 1, 3, 0, 1, 2], "0 to 3"), ([0, -1, 2, 0, 1, 2], "-1 to 2")])
def test_labels_that_are_no_class(path: Path, labels: list[int], span: str) -> None:
    assert f"train/labels go from {span}, but there are 3 classes" in mistake(write(path, labels=labels))


def test_more_images_than_labels(path: Path) -> None:
    message = mistake(write(path, labels=LABELS[:5]))
    assert "test has 6 images and 5 labels; it needs as many" in message


def test_no_images(path: Path) -> None:
    assert "train has 0 images and 0 labels; it needs as many labels as images, and at least one" in mistake(
        write(path, COLOUR[:0], np.zeros(0, np.int64))
    )


def test_another_number_of_prompt_names(path: Path) -> None:
    message = mistake(write(path, prompt_names=json.dumps(["tabby", "hound"])))
    assert "3 class_names but 2 prompt_names; make them as many" in message


@pytest.mark.parametrize("names", ["cat, dog, owl", NAMES], ids=["a sentence", "an array"])
def test_class_names_that_are_not_json(path: Path, names: object) -> None:
    assert "class_names" in mistake(write(path, class_names=names))


def test_an_encoding_that_does_not_exist(path: Path) -> None:
    assert "encoding" in mistake(write(path, encoding="RAW"))


def test_raw_images_that_are_not_uint8(path: Path) -> None:
    """Gray levels 0..1 would all become black."""
    assert "train/images are float32 of shape (4, 4, 5, 1); raw images must be uint8" in mistake(
        write(path, GRAY / np.float32(255))
    )


@pytest.mark.parametrize("encoding", ["jpeg", "png", "files"])
def test_pixels_are_no_files(path: Path, encoding: str) -> None:
    assert f"{encoding} images must be variable-length rows of uint8" in mistake(write(path, encoding=encoding))


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_damaged_image_is_named_by_table_and_index(path: Path, form: str) -> None:
    rows = encode(COLOUR, form)
    rows[3] = rows[3][: len(rows[3]) // 2]
    dataset = build(write(path, rows, dtype=h5py.vlen_dtype(np.uint8), encoding=form.lower()))
    assert list(damage(dataset)) == [f"{path}: test/images[3]"]


def test_damaged_compression_is_told_like_a_damaged_image(path: Path) -> None:
    write(path)
    with h5py.File(path, "r+") as file:
        del file["test/images"]
        where = file.create_dataset("test/images", data=COLOUR, chunks=COLOUR.shape, compression="gzip").id.get_chunk_info(0)
    with path.open("r+b") as file:
        file.seek(where.byte_offset)
        file.write(b"\0" * where.size)
    reasons = damage(build(path))
    assert list(reasons) == [f"{path}: test/images[{row}]" for row in range(6)]
    assert "filter returned failure" in reasons[f"{path}: test/images[0]"]


# --- captions


@pytest.mark.parametrize("caption", ["a photo", "a {} and a {}", "a {} with {braces}", "a {} with {", "{{}}"])
def test_a_caption_needs_one_place_for_the_name_and_no_other_braces(path: Path, caption: str) -> None:
    with pytest.raises(ValidationError, match="caption"):
        hdf5.Options(name="hdf5", path=path, caption=caption)


def test_a_wrong_caption_in_a_configuration_is_named_with_its_key_and_file(path: Path) -> None:
    config = path.with_name("pets.yaml")
    config.write_text(f"method: {{name: flora}}\ndata: {{name: hdf5, path: {path}, caption: a photo}}\npartition: {{name: iid}}\n")
    with pytest.raises(UserError, match=r"pets\.yaml: data\.caption: .*needs \{\} once"):
        configfile.load(config)
