"""Datasets on disk: torchvision's loader, or this project's, reads a miniature of the real layout."""

import os
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flora_hpc import plugins
from flora_hpc.data.datasets import _stored, _torchvision
from flora_hpc.data.datasets._catalog import CATALOG
from flora_hpc.data.decode import DamagedError, decode, rgb
from flora_hpc.data.images import Dataset, Ints
from flora_hpc.errors import UserError
from tests.data import miniatures

ALL = sorted(miniatures.WRITERS)
OF_FILES = [name for name in ALL if name not in miniatures.IN_MEMORY]
LISTED = [name for name in OF_FILES if name not in ("eurosat", "caltech101", "country211", "sun397", "rendered_sst2")]

Lay = Callable[[str], Path]


@pytest.fixture
def lay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lay:
    """Write a miniature; returns its root."""

    def make(name: str) -> Path:
        miniatures.write(name, tmp_path / "root", monkeypatch)
        return tmp_path / "root"

    return make


def build(name: str, **options: object) -> Dataset:
    member = plugins.member("datasets", name)
    return member.build(member.Options(name=name, **options))


def pairs(dataset: Dataset, rows: Ints) -> list[tuple[int, int]]:
    """Label and shade of every image, sorted; an image must be of one shade."""
    found = []
    for row, image in zip(rows.tolist(), decode(dataset.images, rows.tolist()), strict=True):
        assert isinstance(image, Image.Image)
        (low, high), *others = image.getextrema()
        assert low == high
        assert others == [(low, low)] * 2
        found.append((int(dataset.images.labels[row]), low))
    return sorted(found)


def test_every_set_of_the_table_has_a_miniature() -> None:
    assert sorted(CATALOG) == ALL


@pytest.mark.parametrize("name", [name for name in ALL if name not in miniatures.NO_SPLIT])
def test_the_official_parts(name: str, lay: Lay) -> None:
    dataset = build(name, root=lay(name))
    train, test = miniatures.expected(name)
    assert pairs(dataset, dataset.train) == sorted(train)
    assert pairs(dataset, dataset.test) == sorted(test)
    assert dataset.images.labels.dtype == np.int64


@pytest.mark.parametrize("name", ALL)
def test_merged_parts_are_all_images_each_once_with_test_images_of_every_class(name: str, lay: Lay) -> None:
    dataset = build(name, root=lay(name), split="merged", test_fraction=0.5)
    train, test = miniatures.expected(name)
    assert sorted(pairs(dataset, dataset.train) + pairs(dataset, dataset.test)) == sorted(train + test)
    labels = {label for label, _ in train}
    assert {label for label, _ in pairs(dataset, dataset.test)} == labels
    assert {label for label, _ in pairs(dataset, dataset.train)} == labels


@pytest.mark.parametrize("name", miniatures.NO_SPLIT)
def test_without_an_official_split_test_images_are_drawn(name: str, lay: Lay) -> None:
    """A fifth of three, four and three images is one image each."""
    dataset = build(name, root=lay(name))
    assert sorted(label for label, _ in pairs(dataset, dataset.test)) == [0, 1, 2]
    assert len(dataset.train) == 7


@pytest.mark.parametrize("name", ALL)
def test_names_and_captions(name: str, lay: Lay) -> None:
    dataset = build(name, root=lay(name))
    assert dataset.name == name
    assert dataset.class_names[:3] == miniatures.NAMES[name]
    assert dataset.captions[:3] == miniatures.CAPTIONS[name]
    assert len(dataset.class_names) == len(dataset.wordings) == len(dataset.captions) == CATALOG[name].num_classes


def test_the_caption_can_be_chosen(lay: Lay) -> None:
    assert build("pets", root=lay("pets"), caption="{}!").captions == ("Abyssinian!", "American Bulldog!", "Egyptian Mau!")


@pytest.mark.parametrize("name", OF_FILES)
def test_raw_images_are_the_files_themselves_in_the_order_of_their_paths(name: str, lay: Lay) -> None:
    root = lay(name)
    images = build(name, root=root).images
    paths = [Path(images.where(row)) for row in range(len(images))]
    assert images.raw(range(len(images))) == [path.read_bytes() for path in paths]
    assert images.raw([2, 0]) == [paths[2].read_bytes(), paths[0].read_bytes()]
    assert images.column("path", "key").tolist() == [path.relative_to(root).as_posix() for path in paths]
    parts = (len(miniatures.TRAIN), len(miniatures.VAL)) if name != "rendered_sst2" else (2, 2)
    first = paths[: parts[0]]
    assert first == sorted(first)


@pytest.mark.parametrize("name", miniatures.NO_SPLIT)
def test_the_order_does_not_depend_on_the_file_system(name: str, lay: Lay, monkeypatch: pytest.MonkeyPatch) -> None:
    root = lay(name)
    images = build(name, root=root).images
    listed = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: sorted(listed(self, pattern), reverse=True))
    walked, listdir = os.walk, os.listdir
    monkeypatch.setattr(os, "walk", lambda *some, **more: reversed(list(walked(*some, **more))))
    monkeypatch.setattr(os, "listdir", lambda *some: sorted(listdir(*some), reverse=True))
    again = build(name, root=root).images
    assert [again.where(i) for i in range(len(again))] == [images.where(i) for i in range(len(images))]
    np.testing.assert_array_equal(again.labels, images.labels)


@pytest.mark.parametrize("name", miniatures.IN_MEMORY)
def test_images_in_memory_are_named_by_part_and_number(name: str, lay: Lay) -> None:
    images = build(name, root=lay(name)).images
    assert images.where(0).endswith(": train[0]")
    assert images.where(3).endswith(": test[0]")
    assert Path(images.where(3).partition(": ")[0]).is_dir()
    assert rgb(images.raw([3])[0]).getpixel((0, 0)) == (70, 70, 70)
    with pytest.raises(UserError, match="it has none"):
        images.column("path", "key")


@pytest.mark.parametrize("name", OF_FILES)
def test_an_image_that_is_gone_is_told_when_it_is_read(name: str, lay: Lay) -> None:
    images = build(name, root=lay(name)).images
    assert images.stamp is not None
    before = images.stamp()
    Path(images.where(1)).unlink()
    whole, gone = images.raw([0, 1])
    assert isinstance(whole, bytes)
    assert isinstance(gone, OSError)
    damage = decode(images, [0, 1])[1]
    assert isinstance(damage, DamagedError)
    assert "No such file" in str(damage)
    assert images.stamp() != before


@pytest.mark.parametrize("name", ["aircraft", "dtd", "pets"])
def test_a_listed_image_that_never_was_there_does_not_keep_others_from_training(name: str, lay: Lay) -> None:
    root = lay(name)
    images = build(name, root=root).images
    Path(images.where(0)).unlink()
    again = build(name, root=root).images
    assert len(again) == len(images)
    assert [isinstance(image, DamagedError) for image in decode(again, range(3))] == [True, False, False]


@pytest.mark.parametrize("name", ALL)
def test_the_stamp_changes_with_a_file_alone(name: str, lay: Lay) -> None:
    root = lay(name)
    stamps = [images.stamp() for images in (build(name, root=root).images, build(name, root=root).images) if images.stamp]
    assert len(stamps) == 2
    assert stamps[0] == stamps[1]
    images = build(name, root=root).images
    path = Path(images.where(0)) if name in OF_FILES else root / CATALOG[name].needs[0].split(" or ")[0]
    os.utime(path, ns=(1, 1))
    assert images.stamp is not None
    assert images.stamp() != stamps[0]


@pytest.mark.parametrize(("name", "need"), [(name, need) for name in ALL for need in CATALOG[name].needs])
def test_each_thing_that_can_be_missing_is_named_with_the_cure(name: str, need: str, lay: Lay) -> None:
    root = lay(name)
    path = root / need.split(" or ")[0]
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError) as error:
        build(name, root=root)
    start, end = f"{name}: there is no {need} in {root}; ", ", or set data.root to the folder that has it"
    assert str(error.value).startswith(start)
    assert str(error.value).endswith(end)
    cure = str(error.value)[len(start) : -len(end)]
    if name in ("cars", "fer2013"):
        assert f"{root}/" in cure
    else:
        assert cure == f"run 'flora-hpc data fetch {name}' on a machine with a network"


@pytest.mark.parametrize("name", ALL)
def test_a_class_too_few_is_refused(name: str, lay: Lay, monkeypatch: pytest.MonkeyPatch) -> None:
    """The labels of all later classes would be wrong."""
    root = lay(name)
    facts = CATALOG[name]
    object.__setattr__(facts, "num_classes", facts.num_classes + 1)
    with pytest.raises(UserError, match=rf"has {facts.num_classes - 1} classes, it must have {facts.num_classes}; remove that"):
        build(name, root=root)


def test_parts_with_other_classes_are_refused(lay: Lay) -> None:
    root = lay("country211")
    (root / "country211" / "test" / "US").rename(root / "country211" / "test" / "ZW")
    with pytest.raises(UserError, match="part 'test' names other classes than the parts before it"):
        build("country211", root=root)


def test_labels_beyond_the_classes_are_refused(lay: Lay) -> None:
    root = lay("cars")
    path = root / "stanford_cars" / "cars_test_annos_withlabels.mat"
    import scipy.io

    notes = scipy.io.loadmat(path)["annotations"]
    notes["class"][0, 0][:] = 4
    scipy.io.savemat(path, {"annotations": notes})
    with pytest.raises(UserError, match="part 'test' has no images, or labels beyond its 3 classes"):
        build("cars", root=root)


@pytest.mark.parametrize(
    ("name", "file", "reason"),
    [
        ("cifar10", "cifar-10-batches-py/data_batch_2", "Dataset not found or corrupted."),
        ("cifar100", "cifar-100-python/meta", "Dataset metadata file not found or corrupted."),
        ("fmnist", "FashionMNIST/raw/t10k-labels-idx1-ubyte", "part 'test'"),
        ("flowers102", "flowers-102/setid.mat", "Dataset not found or corrupted."),
        ("fer2013", "fer2013/fer2013.csv", "not found in"),
        ("pets", "oxford-iiit-pet/annotations/test.txt", "part 'test': not enough values to unpack"),
        ("cars", "stanford_cars/devkit/cars_meta.mat", "part 'train'"),
        ("aircraft", "fgvc-aircraft-2013b/data/images_variant_test.txt", "part 'test'"),
        ("dtd", "dtd/dtd/labels/val1.txt", "part 'val'"),
        ("food101", "food-101/meta/train.json", "part 'train'"),
        ("sun397", "SUN397/ClassName.txt", "part 'all'"),
        ("tiny_imagenet", "tiny-imagenet-200/words.txt", "part 'train'"),
        ("tiny_imagenet", "tiny-imagenet-200/val/val_annotations.txt", "part 'val'"),
    ],
)
def test_a_damaged_file_is_told_in_one_line_without_torchvisions_advice(name: str, file: str, reason: str, lay: Lay) -> None:
    root = lay(name)
    assert (root / file).is_file()
    (root / file).write_text("spoilt\n")
    with pytest.raises(UserError) as error:
        build(name, root=root)
    assert str(error.value).startswith(f"{name}: the data in {root / Path(file).parts[0]} cannot be used: part '")
    assert reason in str(error.value)
    assert "; remove that folder and " in str(error.value)
    assert "download=True" not in str(error.value)
    assert "\n" not in str(error.value)


def test_remarks_of_libraries_on_old_files_are_not_passed_on(lay: Lay, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some releases of numpy warn of how arrays were pickled in 2009; nobody can do anything about it."""
    load = pickle.load

    def remark(*some: object, **more: object) -> object:
        warnings.warn("this is old", stacklevel=1)
        return load(*some, **more)

    monkeypatch.setattr(pickle, "load", remark)
    assert len(build("cifar10", root=lay("cifar10")).images) == 7


def test_the_other_file_of_fer2013(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    miniatures.icml(tmp_path, monkeypatch)
    dataset = build("fer2013", root=tmp_path)
    assert pairs(dataset, dataset.train) == list(miniatures.TRAIN)
    assert pairs(dataset, dataset.test) == sorted(miniatures.TEST)


@pytest.mark.parametrize("name", ["pets", "caltech101"])
def test_what_torchvision_keeps_to_itself_is_what_it_reads(name: str, lay: Lay) -> None:
    """The listed files equal torchvision's images, one by one."""
    root, facts = lay(name), CATALOG[name]
    for part in (*facts.train, *facts.test):
        theirs = _torchvision.load(facts, root, part)
        images, _ = _torchvision.read(facts, root, part)
        expected = sorted((label, image.getpixel((0, 0))) for image, label in (theirs[i] for i in range(len(theirs))))
        ours = [rgb(raw).getpixel((0, 0)) for raw in images.raw(range(len(images)))]
        assert sorted(zip(images.labels.tolist(), ours, strict=True)) == expected


def test_the_official_test_images_of_tiny_imagenet_have_no_labels_and_are_left_alone(lay: Lay) -> None:
    images = build("tiny_imagenet", root=lay("tiny_imagenet")).images
    assert not any("/test/" in images.where(i) for i in range(len(images)))


def test_the_folder_is_an_option_or_the_environments_or_below_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.delenv(_stored.VARIABLE, raising=False)
    assert _stored.folder(None) == Path("/home/ada/.cache/flora_hpc/data")
    monkeypatch.setenv("FLORA_HPC_DATA", "~/scratch")
    assert _stored.folder(None) == Path("/home/ada/scratch")
    assert _stored.folder(tmp_path) == tmp_path
