import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import DatasetFolder

from flora_hpc.data.datasets import _walk, imagefolder
from flora_hpc.data.datasets._files import SUFFIXES
from flora_hpc.data.decode import rgb
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
    """Class and content of these images."""
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


@pytest.mark.parametrize("test", ["test", "val", "valid", "validation", "dev", "Eval", "holdout"])
def test_an_official_split(tmp_path: Path, test: str) -> None:
    put(tmp_path, "train/cat/a.jpg", "train/dog/b.jpg", f"{test}/dog/c.jpg", f"{test}/cat/d.jpg")
    dataset = build(tmp_path)
    assert contents(dataset, dataset.train) == [("cat", "train/cat/a.jpg"), ("dog", "train/dog/b.jpg")]
    assert contents(dataset, dataset.test) == [("cat", f"{test}/cat/d.jpg"), ("dog", f"{test}/dog/c.jpg")]


def test_test_images_without_classes_are_left_alone(tmp_path: Path) -> None:
    """As in ImageNet: val has labels, test has none."""
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


@pytest.mark.parametrize("other", ["queries/cat/b.jpg", "Unlabeled/b.jpg", "extra/dog/deep/b.jpg"])
def test_parts_of_unknown_names_are_no_classes(tmp_path: Path, other: str) -> None:
    message = mistake(put(tmp_path, "train/cat/a.jpg", "train/dog/c.jpg", other))
    assert f"has train beside {other.split('/')[0]}, as if they were classes; did you mean the parts? Call" in message
    assert build(put(tmp_path, "train/d.jpg")).class_names == tuple(sorted(["train", other.split("/")[0]]))


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


# --- each file once, by its first bytes; the rest is counted


def picture(path: Path, form: str = "PNG", **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (len(path.name), 9, 9)).save(path, form, **options)
    return path


def names(dataset: Dataset) -> list[str]:
    """The files, relative to the dataset's folder."""
    return dataset.images.column("path", "key").tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.gif", "GIF"),
        ("a.JFIF", "JPEG"),
        ("a", "JPEG"),
        ("a.b", "WEBP"),
        ("a.png.txt", "PNG"),
        ("a.avif", "AVIF"),
        ("a.jp2", "JPEG2000"),
        ("a.dat", "BMP"),
        ("a.ico", "ICO"),
    ],
)
def test_first_bytes_make_an_image_whatever_it_is_called(tmp_path: Path, name: str, form: str) -> None:
    picture(tmp_path / "cat" / name, form)
    picture(tmp_path / "cat" / "b.jpg", "PNG")  # the other way round: Pillow reads what is in it
    dataset = build(tmp_path)
    assert (names(dataset), dataset.left_out) == ([f"cat/{name}", "cat/b.jpg"], {})
    assert [rgb(raw).size for raw in dataset.images.raw([0, 1])] == [(4, 4)] * 2


def test_what_is_no_image_is_counted_by_reason(tmp_path: Path) -> None:
    """The example is the first by name, for any order of the folder's listing."""
    picture(tmp_path / "cat" / "a.png")
    put(tmp_path, "cat/z.txt", "cat/notes.txt", "cat/._a.png", "dog/.DS_Store", "__MACOSX/cat/a.png", "list.csv", "beside.jpg")
    picture(tmp_path / "dog" / "sub" / "b.png")
    for name in ("dog/IMG_1.HEIC", "dog/IMG_2.heic", "dog/photo"):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (tmp_path / "cat" / "more.zip").write_bytes(b"PK\x03\x04")
    (tmp_path / "birds.tar.gz").write_bytes(b"\x1f\x8b\x08")
    os.mkfifo(tmp_path / "cat" / "pipe.jpg")
    (tmp_path / "owl").symlink_to(tmp_path / "nowhere")
    (tmp_path / "cat" / "link").symlink_to("link")
    dataset = build(tmp_path)
    assert names(dataset) == ["cat/a.png", "dog/sub/b.png"]
    assert dataset.left_out == {
        "HEIF images, for which no decoder is installed (pip install pillow-heif), such as dog/IMG_1.HEIC": 3,
        "a link that leads nowhere, such as cat/link": 2,
        "a pipe, socket or device, such as cat/pipe.jpg": 1,
        "an archive that is not unpacked, such as birds.tar.gz": 2,
        "an image outside the folders of classes, such as beside.jpg": 1,
        "hidden, or written by the operating system, such as __MACOSX": 3,
        "no image, by its first bytes, such as cat/notes.txt": 3,
    }


def test_other_folders_beside_train_and_test_are_counted(tmp_path: Path) -> None:
    put(tmp_path, "train/cat/a.jpg", "test/cat/b.jpg", "val/cat/c.jpg", "val/cat/d.jpg", "train/e.jpg")
    assert build(tmp_path).left_out == {
        "an image outside the folders of classes, such as train/e.jpg": 1,
        "in a folder that holds neither training nor test images, such as val": 2,
    }


@pytest.mark.parametrize(("train", "test"), [("Train", "TEST"), ("Training", "Testing")])
def test_parts_in_other_letters_are_no_classes(tmp_path: Path, train: str, test: str) -> None:
    dataset = build(put(tmp_path, f"{train}/cat/a.jpg", f"{train}/dog/b.jpg", f"{test}/cat/c.jpg", f"{test}/dog/d.jpg"))
    assert dataset.class_names == ("cat", "dog")
    assert contents(dataset, dataset.test) == [("cat", f"{test}/cat/c.jpg"), ("dog", f"{test}/dog/d.jpg")]


@pytest.mark.parametrize("target", ["..", "../..", ".", "sub", "/"])
def test_a_link_upwards_or_sideways_within_a_class_brings_nothing_twice(tmp_path: Path, target: str) -> None:
    root = put(tmp_path / "root", "cat/a.jpg", "cat/sub/b.jpg", "dog/c.jpg")
    (root / "cat" / "all").symlink_to(target)
    (root / "cat" / "sub" / "up").symlink_to(root / "cat")
    dataset = build(root)
    assert contents(dataset, np.arange(len(dataset.images))) == [
        ("cat", "cat/a.jpg"),
        ("cat", "cat/sub/b.jpg"),
        ("dog", "dog/c.jpg"),
    ]
    assert dataset.left_out == {"another way to a file or folder that is there already, such as cat/all": 2}


def test_a_link_from_outside_back_into_its_own_folders_ends(tmp_path: Path) -> None:
    """Two folders elsewhere that link to each other, and to the folder that contains both."""
    root = put(tmp_path / "root", "cat/a.jpg")
    put(tmp_path / "elsewhere", "one/b.jpg", "two/c.jpg")
    (root / "cat" / "more").symlink_to(tmp_path / "elsewhere" / "one")
    (tmp_path / "elsewhere" / "one" / "two").symlink_to("../two")
    (tmp_path / "elsewhere" / "two" / "one").symlink_to("../one")
    (tmp_path / "elsewhere" / "two" / "up").symlink_to("../..")
    assert names(build(root)) == ["cat/a.jpg", "cat/more/b.jpg", "cat/more/two/c.jpg"]


@pytest.mark.parametrize("make", [os.link, lambda target, link: link.symlink_to(target)], ids=["hard", "soft"])
def test_a_file_with_two_names_in_one_class_is_one_image(tmp_path: Path, make: Callable[[Path, Path], None]) -> None:
    put(tmp_path, "cat/b.jpg", "dog/c.jpg")
    make(tmp_path / "cat" / "b.jpg", tmp_path / "cat" / "x.jpg")
    dataset = build(tmp_path)
    assert names(dataset) == ["cat/b.jpg", "dog/c.jpg"]
    assert dataset.left_out == {"another way to a file or folder that is there already, such as cat/x.jpg": 1}


def test_a_file_keeps_its_own_path_before_that_of_a_link(tmp_path: Path) -> None:
    put(tmp_path, "cat/b.jpg")
    (tmp_path / "cat" / "a.jpg").symlink_to("b.jpg")
    assert names(build(tmp_path)) == ["cat/b.jpg"]


@pytest.mark.parametrize("make", [os.link, lambda target, link: link.symlink_to(target)], ids=["hard", "soft"])
def test_one_file_in_two_classes_is_refused(tmp_path: Path, make: Callable[[Path, Path], None]) -> None:
    put(tmp_path, "cat/b.jpg", "dog/c.jpg")
    make(tmp_path / "cat" / "b.jpg", tmp_path / "dog" / "a.jpg")
    assert mistake(tmp_path) == (
        "data.path: cat/b.jpg and dog/a.jpg are links to one file, which has two classes (1 in all); "
        "remove one of the two, or make a copy where both are meant"
    )


def test_a_class_that_is_a_link_to_another_class_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "cat/a.jpg", "cat/b.jpg")
    (tmp_path / "kitty").symlink_to("cat")
    assert "cat/a.jpg and kitty/a.jpg are links to one file, which has two classes (2 in all)" in mistake(tmp_path)


def test_test_images_that_are_training_images_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "train/cat/a.jpg", "train/dog/b.jpg")
    (tmp_path / "test").symlink_to("train")
    sentence = "train/cat/a.jpg and test/cat/a.jpg are links to one file, which would be trained on and tested with (2 in all)"
    assert sentence in mistake(tmp_path)


def test_numbers_of_files_that_are_not_unique_mean_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems list the same number for all files."""
    put(tmp_path, "cat/a.jpg", "dog/b.jpg")
    entries = _walk.entries

    def listed(folder: Any) -> list[Any]:
        asked = ("name", "path", "is_dir", "is_file", "is_symlink")
        return [SimpleNamespace(inode=lambda: 7, **{name: getattr(entry, name) for name in asked}) for entry in entries(folder)]

    monkeypatch.setattr(_walk, "entries", listed)
    assert names(build(tmp_path)) == ["cat/a.jpg", "dog/b.jpg"]


def test_a_link_to_an_image_that_is_not_there_is_a_damaged_image(tmp_path: Path) -> None:
    """Broken links, as git-annex leaves them, must not be dropped silently."""
    put(tmp_path, "cat/a.jpg")
    (tmp_path / "cat" / "b.jpg").symlink_to("nowhere")
    first, second = build(tmp_path).images.raw([0, 1])
    assert (first, type(second)) == (b"cat/a.jpg", FileNotFoundError)


def test_the_order_is_that_of_torchvision(tmp_path: Path) -> None:
    """Stored features and drawn test images depend on the order."""
    files = ["cat/b.jpg", "cat/a b/z.jpg", "cat/a/z.png", "cat/a.x/y.jpg", "cat/Z.jpg", "a cat/é.jpg", "cat/a/b/c.jpg"]
    put(tmp_path, *files)
    expected = DatasetFolder(str(tmp_path), loader=str, extensions=SUFFIXES).samples
    dataset = build(tmp_path)
    assert [(str(tmp_path / name), label) for name, label in zip(names(dataset), dataset.images.labels, strict=True)] == expected


def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "cat/a.jpg", "cat/sub/b.jpg")
    scandir = os.scandir

    def deny(path: Any) -> Any:
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    assert (
        mistake(tmp_path) == f"data.path: {tmp_path}/cat/sub cannot be read (Permission denied); make it readable, or take it out"
    )


def test_first_bytes_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "cat/a.jpg", "cat/b")
    opened, error = Path.open, PermissionError(13, "Permission denied")

    def fail(path: Path, *arguments: Any) -> Any:
        if path.name == "b":
            raise error
        return opened(path, *arguments)

    monkeypatch.setattr(Path, "open", fail)
    assert build(tmp_path).left_out == {"must not be read by this user, such as cat/b": 1}
    error = OSError(5, "Input/output error")
    assert mistake(tmp_path).startswith(f"data.path: {tmp_path}/cat/b cannot be read now (Input/output error); ")


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


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("https://example.org/pets", "is an address; files must be here, so download it first"),
        ("D:\\pets", "is a path of Windows; write it as this system has it"),
        ("~nobody-of-this-name/pets", "begins with ~ and no known user; write the path out"),
        ("x" * 5000, "there is no folder xxx"),
        (f"{'x' * 5000}/pets", "there is no folder xxx"),
    ],
)
def test_paths_that_are_no_folders(tmp_path: Path, path: str, why: str) -> None:
    message = mistake(Path(path))
    assert message.startswith("data.path: ")
    assert why in message


def test_names_of_nobody(tmp_path: Path) -> None:
    message = mistake(put(tmp_path, "cat/a.jpg"), names=Path("~nobody-of-this-name/x.yaml"))
    assert message == "data.names: ~nobody-of-this-name/x.yaml: begins with ~ and no known user; write the path out"


def test_no_folders_of_classes(tmp_path: Path) -> None:
    assert mistake(put(tmp_path, "a.jpg")) == (
        f"data.path: {tmp_path} has no folders; it needs one for each class, with its images "
        "(left out: 1 x an image outside the folders of classes, such as a.jpg)"
    )
    assert "train has no folders" in mistake(put(tmp_path / "b", "train/a.jpg", "test/b.jpg"))


def test_test_images_without_training_images(tmp_path: Path) -> None:
    assert "has test, but no train beside it" in mistake(put(tmp_path, "test/cat/a.jpg", "val/cat/b.jpg"))


def test_train_and_test_have_other_classes(tmp_path: Path) -> None:
    put(tmp_path, "train/cat/a.jpg", "train/dog/b.jpg", "test/cat/c.jpg", "test/owl/d.jpg")
    assert "have other classes: dog, owl in one of them only" in mistake(tmp_path)


def test_classes_without_images(tmp_path: Path) -> None:
    put(tmp_path, "cat/a.jpg", *[f"empty {i:02}/notes.txt" for i in range(12)])
    message = mistake(tmp_path)
    assert f"{tmp_path} has no images in the folders empty 00, empty 01," in message
    assert message.endswith(
        "empty 09 and 2 more; put some in, or remove the folders "
        "(left out: 12 x no image, by its first bytes, such as empty 00/notes.txt)"
    )


def test_archives_in_place_of_folders(tmp_path: Path) -> None:
    archive = tmp_path / "pets.zip"
    archive.write_bytes(b"PK\x03\x04")
    assert (
        mistake(archive) == f"data.path: {archive} is an archive; unpack it; give a folder, or data.name: pairs or hdf5 for a file"
    )
    assert mistake(tmp_path).endswith("(left out: 1 x an archive that is not unpacked, such as pets.zip)")
    (tmp_path / "cat").mkdir()
    archive.rename(tmp_path / "cat" / "images")
    (tmp_path / "cat" / "images").write_bytes(bytes(257) + b"ustar\00000")
    assert mistake(tmp_path).endswith("remove the folders (left out: 1 x an archive that is not unpacked, such as cat/images)")


@pytest.mark.parametrize("inside", ["cat/a.jpg", "train/cat/a.jpg"])
def test_a_folder_around_all_folders(tmp_path: Path, inside: str) -> None:
    """A layout as an archive unpacks it."""
    message = mistake(put(tmp_path, f"pets/{inside}"))
    assert message == f"data.path: {tmp_path} has a single folder, which has folders; did you mean {tmp_path}/pets?"


@pytest.mark.parametrize(("name", "shown"), [(b"caf\xe9", r"caf\udce9"), (b"a\nb", r"a\nb")])
def test_names_that_cannot_be_written(tmp_path: Path, name: bytes, shown: str) -> None:
    """In the name of a class they are refused; in the name of a file they are shown as escapes."""
    put(tmp_path, "cat/a.jpg")
    (tmp_path / "cat" / os.fsdecode(name + b".jpg")).write_bytes(b"")
    dataset = build(tmp_path)
    assert f"{tmp_path}/cat/{shown}.jpg" in {dataset.images.where(row) for row in (0, 1)}
    (tmp_path / os.fsdecode(name)).mkdir()
    assert f"the folder {shown} is not named in UTF-8, or over several lines; rename it" in mistake(tmp_path)


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
        ("[" * 100_000, "cannot be read (its brackets are nested too deeply)"),
        ('{"cat": "x", "cat": "y"}', "cannot be read (it has the key 'cat' twice)"),
    ],
)
def test_a_wrong_file_of_names(tmp_path: Path, text: str, expected: str) -> None:
    names = tmp_path / "names.json"
    names.write_text(text)
    message = mistake(put(tmp_path / "images", "cat/a.jpg"), names=names)
    assert message.startswith(f"data.names: {names}")
    assert expected in message


def test_no_file_of_names(tmp_path: Path) -> None:
    assert "cannot be read (No such file or directory); it must" in mistake(
        put(tmp_path / "images", "cat/a.jpg"), names=tmp_path / "names.yaml"
    )


def test_a_whole_picture(tmp_path: Path) -> None:
    """The bytes are the bytes of the file."""
    file = picture(tmp_path / "cat" / "a.png")
    assert build(tmp_path).images.raw([0]) == [file.read_bytes()]
