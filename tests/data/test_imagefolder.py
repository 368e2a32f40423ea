import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flora_hpc.data.datasets import imagefolder
from flora_hpc.data.datasets._files import SUFFIXES
from flora_hpc.data.images import Dataset
from flora_hpc.errors import UserError


def put(root: Path, *files: str) -> Path:
    """Files whose content is their own path, in folders made for them."""
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file)
    return root


def build(path: Path, **options: object) -> Dataset:
    return imagefolder.build(imagefolder.Options(name="imagefolder", path=path, **options))


def mistake(path: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        build(path, **options)
    return str(caught.value)


def contents(dataset: Dataset, rows: np.ndarray) -> list[tuple[str, str]]:
    """Of these images, class and content."""
    raws = dataset.images.raw(rows.tolist())
    return [(dataset.class_names[label], raw.decode()) for label, raw in zip(dataset.images.labels[rows], raws, strict=True)]


# --- layouts


def test_folders_of_classes_without_a_split(tmp_path: Path) -> None:
    put(tmp_path / "pets", "dog/b.jpg", "cat/a.jpg", "dog/c.PNG", "cat/d.webp")
    dataset = build(tmp_path / "pets", test_fraction=0.5)
    assert (dataset.name, dataset.class_names) == ("pets", ("cat", "dog"))
    assert contents(dataset, np.arange(4)) == [
        ("cat", "cat/a.jpg"),
        ("cat", "cat/d.webp"),
        ("dog", "dog/b.jpg"),
        ("dog", "dog/c.PNG"),
    ]
    assert sorted(dataset.images.labels[dataset.test]) == [0, 1]
    assert sorted([*dataset.train, *dataset.test]) == [0, 1, 2, 3]


@pytest.mark.parametrize("test", ["test", "val", "valid", "validation"])
def test_an_official_split(tmp_path: Path, test: str) -> None:
    put(tmp_path, "train/cat/a.jpg", "train/dog/b.jpg", f"{test}/dog/c.jpg", f"{test}/cat/d.jpg")
    dataset = build(tmp_path)
    assert contents(dataset, dataset.train) == [("cat", "train/cat/a.jpg"), ("dog", "train/dog/b.jpg")]
    assert contents(dataset, dataset.test) == [("cat", f"{test}/cat/d.jpg"), ("dog", f"{test}/dog/c.jpg")]


def test_test_images_without_classes_are_left_alone(tmp_path: Path) -> None:
    """As ImageNet's: val has labels, test has none."""
    put(tmp_path, "train/cat/a.jpg", "val/cat/b.jpg", "test/c.jpg")
    dataset = build(tmp_path)
    assert contents(dataset, dataset.test) == [("cat", "val/cat/b.jpg")]


def test_only_a_folder_of_training_images_is_split(tmp_path: Path) -> None:
    dataset = build(put(tmp_path, "train/cat/a.jpg", "train/cat/b.jpg"))
    assert dataset.class_names == ("cat",)
    assert (len(dataset.train), len(dataset.test)) == (1, 1)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    dataset = build(put(tmp_path, "train/side/a.jpg", "bus/b.jpg"))
    assert contents(dataset, np.arange(2)) == [("bus", "bus/b.jpg"), ("train", "train/side/a.jpg")]


def test_a_merged_split(tmp_path: Path) -> None:
    files = [f"{part}/cat/{i}.jpg" for part in ("train", "test") for i in range(5)]
    dataset = build(put(tmp_path, *files), split="merged", test_fraction=0.3)
    assert len(dataset.test) == 3
    assert [file for _, file in contents(dataset, np.arange(10))] == files


# --- which files


def test_hidden_and_other_files_are_no_images(tmp_path: Path) -> None:
    put(tmp_path, "cat/a.jpg", "cat/._a.jpg", "cat/.DS_Store", "cat/notes.txt", "cat/.thumbnails/a.jpg", ".git/b.jpg", "list.csv")
    assert contents(build(tmp_path), np.arange(1)) == [("cat", "cat/a.jpg")]
    assert len(build(tmp_path).images) == 1


def test_the_suffixes_are_those_of_torchvision() -> None:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    assert SUFFIXES == IMG_EXTENSIONS


def test_a_dot_in_the_path_above_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / ".cache", "cat/a.jpg")
    assert len(build(tmp_path / ".cache").images) == 1
    monkeypatch.chdir(tmp_path / ".cache")
    dataset = build(Path())
    assert (dataset.name, contents(dataset, np.arange(1))) == (".cache", [("cat", "cat/a.jpg")])


def test_folders_may_be_links(tmp_path: Path) -> None:
    put(tmp_path / "all", "cat/a.jpg", "dog/b.jpg")
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "cat").symlink_to(tmp_path / "all" / "cat")
    assert contents(build(tmp_path / "some"), np.arange(1)) == [("cat", "cat/a.jpg")]


def test_an_image_that_cannot_be_read_is_told_in_its_place(tmp_path: Path) -> None:
    put(tmp_path, "cat/a.jpg", "cat/b.jpg", "cat/c.jpg")
    dataset = build(tmp_path)
    (tmp_path / "cat/b.jpg").unlink()
    first, second, third = dataset.images.raw([2, 1, 0])
    assert (first, third) == (b"cat/c.jpg", b"cat/a.jpg")
    assert isinstance(second, FileNotFoundError)
    assert dataset.images.where(1) == str(tmp_path / "cat/b.jpg")


def test_a_folder_may_be_empty_in_one_part(tmp_path: Path) -> None:
    put(tmp_path, "train/cat/a.jpg", "train/dog/b.jpg", "test/cat/c.jpg")
    (tmp_path / "test/dog").mkdir()
    dataset = build(tmp_path)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.images.labels[dataset.test].tolist() == [0]


# --- columns, stamp, names


def test_columns_tell_the_path_and_the_folder_below_the_class(tmp_path: Path) -> None:
    images = build(put(tmp_path, "train/cat/a.jpg", "train/cat/anna/b.jpg", "test/cat/bert/june/c.jpg")).images
    assert images.column("path", "key").tolist() == ["train/cat/a.jpg", "train/cat/anna/b.jpg", "test/cat/bert/june/c.jpg"]
    assert images.column("folder", "key").tolist() == ["", "anna", "bert/june"]


def test_without_nested_folders_there_is_no_such_column(tmp_path: Path) -> None:
    assert sorted(build(put(tmp_path, "cat/a.jpg")).images.columns) == ["path"]


def test_the_stamp_changes_when_an_image_does(tmp_path: Path) -> None:
    stamp = build(put(tmp_path, "cat/a.jpg", "cat/b.jpg")).images.stamp
    assert stamp is not None
    before = stamp()
    assert stamp() == before
    os.utime(tmp_path / "cat/b.jpg", ns=(1, 1))
    assert stamp() != before


def test_captions_write_spaces(tmp_path: Path) -> None:
    dataset = build(put(tmp_path, "maple_tree/a.jpg", "T-shirt/b.jpg"))
    assert dataset.class_names == ("T-shirt", "maple_tree")
    assert dataset.captions == ("a photo of a T shirt.", "a photo of a maple tree.")


@pytest.mark.parametrize(
    ("name", "text"), [("n.json", '{"n01": "great  white", "2": "two_three"}'), ("n.yaml", "n01: great  white\n2: two_three")]
)
def test_a_file_may_say_how_classes_are_written(tmp_path: Path, name: str, text: str) -> None:
    put(tmp_path / "images", "n01/a.jpg", "2/b.jpg", "other_one/c.jpg")
    (tmp_path / name).write_text(text)
    dataset = build(tmp_path / "images", names=tmp_path / name)
    assert dataset.class_names == ("2", "n01", "other_one")
    assert dataset.wordings == ("two_three", "great  white", "other one")


def test_names_are_texts_whatever_they_look_like(tmp_path: Path) -> None:
    """YAML 1.1 took the folder 0010 for 8, no for false, and 1_0 for 10."""
    put(tmp_path / "images", "0010/a.jpg", "no/b.jpg", "1e3/c.jpg")
    (tmp_path / "names.yaml").write_text("0010: 1_0\nno: yes\n1e3: 2024-01-01\n")
    dataset = build(tmp_path / "images", names=tmp_path / "names.yaml")
    assert dict(zip(dataset.class_names, dataset.wordings, strict=True)) == {"0010": "1_0", "no": "yes", "1e3": "2024-01-01"}


# --- mistakes


def test_a_missing_folder_is_named_with_its_neighbour(tmp_path: Path) -> None:
    put(tmp_path / "pets", "cat/a.jpg")
    assert mistake(tmp_path / "pest") == f"data.path: there is no folder {tmp_path / 'pest'}; did you mean 'pets'?"
    assert "there is no folder" in mistake(tmp_path / "nowhere" / "pets")


def test_no_folders_of_classes(tmp_path: Path) -> None:
    assert mistake(put(tmp_path, "a.jpg")) == f"data.path: {tmp_path} has no folders; it needs one for each class, with its images"
    assert "train has no folders" in mistake(put(tmp_path / "b", "train/a.jpg", "test/b.jpg"))


def test_test_images_without_training_images(tmp_path: Path) -> None:
    assert "has test, but no train beside it" in mistake(put(tmp_path, "test/cat/a.jpg", "val/cat/b.jpg"))


def test_train_and_test_have_other_classes(tmp_path: Path) -> None:
    put(tmp_path, "train/cat/a.jpg", "train/dog/b.jpg", "test/cat/c.jpg", "test/owl/d.jpg")
    assert "have other classes: dog, owl in one of them only" in mistake(tmp_path)


def test_classes_without_images(tmp_path: Path) -> None:
    put(tmp_path, "cat/a.jpg", *[f"empty {i:02}/notes.txt" for i in range(12)])
    message = mistake(tmp_path)
    assert f"{tmp_path} has no images for empty 00, empty 01," in message
    assert "empty 09 and 2 more; fill or remove the folders (images end in .jpg, .jpeg, " in message


def test_no_test_images_at_all(tmp_path: Path) -> None:
    (tmp_path / "test/cat").mkdir(parents=True)
    assert f"data.path: {tmp_path / 'test'} holds no images" in mistake(put(tmp_path, "train/cat/a.jpg"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"cta": "cat"}', "there is no class folder 'cta'; did you mean 'cat'?"),
        ('["cat"]', "must map the folder of each class to a text"),
        ('{"cat": 3}', "must map the folder of each class to a text"),
        ('{"cat": ', "cannot be read (Expecting value"),
        ('{"cat": "x", "cat": "y"}', "cannot be read (key 'cat' stands twice)"),
    ],
)
def test_a_wrong_file_of_names(tmp_path: Path, text: str, expected: str) -> None:
    names = tmp_path / "names.json"
    names.write_text(text)
    message = mistake(put(tmp_path / "images", "cat/a.jpg"), names=names)
    assert message.startswith(f"data.names: {names}")
    assert expected in message


def test_no_file_of_names(tmp_path: Path) -> None:
    assert "cannot be read ([Errno 2] No such file" in mistake(put(tmp_path / "images", "cat/a.jpg"), names=tmp_path / "names.yaml")


def test_a_whole_picture(tmp_path: Path) -> None:
    """Bytes are those of the file."""
    file = tmp_path / "cat" / "a.png"
    file.parent.mkdir()
    Image.new("RGB", (2, 2)).save(file)
    assert build(tmp_path).images.raw([0]) == [file.read_bytes()]
