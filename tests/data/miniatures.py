"""Tiny copies of datasets in the layouts of their real archives; torchvision's loaders read them.

Every image has one shade of gray, which identifies it. Every class has an image in every official part.
"""

import csv
import hashlib
import json
import pickle
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from flora_hpc.data import datasets
from flora_hpc.data.datasets import _torchvision
from flora_hpc.data.datasets._catalog import CATALOG

Pairs = Sequence[tuple[int, int]]  # label and shade of every image
TRAIN: Pairs = [(0, 10), (1, 20), (2, 30)]
VAL: Pairs = [(0, 40), (1, 50), (2, 60)]
TEST: Pairs = [(0, 70), (1, 80), (2, 90), (1, 100)]
NO_VAL = ("fmnist", "cifar10", "cifar100", "tiny_imagenet", "pets", "aircraft", "cars", "fer2013", "food101")
NO_SPLIT = ("eurosat", "caltech101", "sun397")
IN_MEMORY = ("fmnist", "cifar10", "cifar100", "fer2013")
NUM_CLASSES = {"fmnist": 10, "flowers102": 102, "fer2013": 7, "rendered_sst2": 2}  # fixed by torchvision; other miniatures have 3

NAMES = {  # names of the first three classes in the data or in torchvision
    "fmnist": ("T-shirt/top", "Trouser", "Pullover"),
    "cifar10": ("airplane", "automobile", "bird"),
    "cifar100": ("apple", "aquarium_fish", "maple_tree"),
    "tiny_imagenet": ("goldfish", "European fire salamander", "bullfrog"),
    "pets": ("Abyssinian", "American Bulldog", "Egyptian Mau"),
    "flowers102": ("pink primrose", "hard-leaved pocket orchid", "canterbury bells"),
    "aircraft": ("707-320", "Cessna 172", "F-16A/B"),
    "cars": ("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Ram C/V Cargo Van Minivan 2012"),
    "dtd": ("banded", "blotchy", "polka-dotted"),
    "eurosat": ("AnnualCrop", "Highway", "SeaLake"),
    "fer2013": ("Angry", "Disgust", "Fear"),
    "caltech101": ("Faces", "Faces_easy", "water_lilly"),
    "food101": ("apple_pie", "baby_back_ribs", "waffles"),
    "country211": ("AD", "US", "XK"),
    "sun397": ("abbey", "apartment_building/outdoor", "elevator/door"),
    "rendered_sst2": ("negative", "positive"),
}
CAPTIONS = {
    "fmnist": ("a photo of a t-shirt or top.", "a photo of a pair of trousers.", "a photo of a pullover."),
    "cifar10": ("a photo of a airplane.", "a photo of a automobile.", "a photo of a bird."),
    "cifar100": ("a photo of a apple.", "a photo of a aquarium fish.", "a photo of a maple tree."),
    "tiny_imagenet": ("a photo of a goldfish.", "a photo of a European fire salamander.", "a photo of a bullfrog."),
    "pets": (
        "a photo of a Abyssinian, a type of pet.",
        "a photo of a American Bulldog, a type of pet.",
        "a photo of a Egyptian Mau, a type of pet.",
    ),
    "flowers102": (
        "a photo of a pink primrose, a type of flower.",
        "a photo of a hard-leaved pocket orchid, a type of flower.",
        "a photo of a canterbury bells, a type of flower.",
    ),
    "aircraft": (
        "a photo of a 707-320, a type of aircraft.",
        "a photo of a Cessna 172, a type of aircraft.",
        "a photo of a F-16A/B, a type of aircraft.",
    ),
    "cars": (
        "a photo of a AM General Hummer SUV 2000.",
        "a photo of a Acura RL Sedan 2012.",
        "a photo of a Ram C/V Cargo Van Minivan 2012.",
    ),
    "dtd": ("banded texture.", "blotchy texture.", "polka-dotted texture."),
    "eurosat": (
        "a centered satellite photo of annual crop land.",
        "a centered satellite photo of highway or road.",
        "a centered satellite photo of sea or lake.",
    ),
    "fer2013": (
        "a photo of a angry looking face.",
        "a photo of a disgusted looking face.",
        "a photo of a fearful looking face.",
    ),
    "caltech101": ("a photo of a off-center face.", "a photo of a centered face.", "a photo of a water lily."),
    "food101": (
        "a photo of apple pie, a type of food.",
        "a photo of baby back ribs, a type of food.",
        "a photo of waffles, a type of food.",
    ),
    "country211": ("a photo i took in Andorra.", "a photo i took in United States.", "a photo i took in Kosovo."),
    "sun397": ("a photo of a abbey.", "a photo of a outdoor apartment building.", "a photo of a elevator door."),
    "rendered_sst2": ("a negative review of a movie.", "a positive review of a movie."),
}


def expected(name: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Labels and shades that train and those that test, officially; without a split all of them train."""
    train, test = [*TRAIN, *([] if name in NO_VAL else VAL)], list(TEST)
    if name == "rendered_sst2":
        train, test = ([pair for pair in side if pair[0] < 2] for side in (train, test))
    return (train + test, []) if name in NO_SPLIT else (train, test)


def write(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay the miniature out below `root`; torchvision's checksums and our number of classes become the miniature's."""
    WRITERS[name](root, monkeypatch)
    facts = replace(CATALOG[name], num_classes=NUM_CLASSES.get(name, 3))
    monkeypatch.setitem(CATALOG, name, facts)
    if name in datasets.TABLE:
        monkeypatch.setitem(datasets.TABLE, name, _torchvision.member(facts))


def picture(path: Path, shade: int, kind: str = "jpeg") -> None:
    """A file of 8 x 8 pixels; one shade survives JPEG unchanged at full quality."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade,) * 3).save(path, kind, quality=100)


def text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def fmnist(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, pairs in (("train", TRAIN), ("t10k", TEST)):
        pixels = np.repeat(np.array([shade for _, shade in pairs], np.uint8), 28 * 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, len(pairs), 28, 28) + pixels.tobytes())
        labels = bytes(label for label, _ in pairs)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, len(pairs)) + labels)


def cifar(name: str, folder: str, batches: dict[str, Pairs], test: str, meta: str, key: str, names: str) -> Callable[..., None]:
    def lay(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from torchvision import datasets as torchvision

        base, kind = root / folder, {"cifar10": torchvision.CIFAR10, "cifar100": torchvision.CIFAR100}[name]
        base.mkdir(parents=True)
        for file, pairs in {**batches, test: TEST}.items():
            data = np.repeat(np.array([[shade] for _, shade in pairs], np.uint8).reshape(-1, 1), 3072, axis=1)
            content = pickle.dumps({"data": data, key: [label for label, _ in pairs]}, protocol=2)
            old = content.replace(b"numpy._core", b"numpy.core").replace(b"\x89\x88\x87", b"K\x00K\x01\x87")  # as in 2009
            assert old.count(b"K\x00K\x01\x87") == 1
            (base / file).write_bytes(old)
        (base / meta).write_bytes(pickle.dumps({names: list(NAMES[name])}, protocol=2))
        monkeypatch.setattr(kind, "train_list", [[file, md5(base / file)] for file in batches])
        monkeypatch.setattr(kind, "test_list", [[test, md5(base / test)]])
        monkeypatch.setattr(kind, "meta", {"filename": meta, "key": names, "md5": md5(base / meta)})

    return lay


def tiny_imagenet(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, wnids = root / "tiny-imagenet-200", ["n01443537", "n01629819", "n01641577"]
    text(base / "wnids.txt", *wnids)
    text(
        base / "words.txt",
        "n00001740\tentity",
        "n01641577\tbullfrog, Rana catesbeiana",
        "n01443537\tgoldfish, Carassius auratus",
        "n01629819\tEuropean fire salamander, Salamandra salamandra",
    )
    for label, shade in TRAIN:
        picture(base / "train" / wnids[label] / "images" / f"{wnids[label]}_0.JPEG", shade)
        text(base / "train" / wnids[label] / f"{wnids[label]}_boxes.txt", f"{wnids[label]}_0.JPEG\t0\t10\t63\t58")
    for i, (_, shade) in enumerate(TEST):
        picture(base / "val" / "images" / f"val_{i}.JPEG", shade)
    text(
        base / "val" / "val_annotations.txt", *(f"val_{i}.JPEG\t{wnids[label]}\t0\t32\t44\t62" for i, (label, _) in enumerate(TEST))
    )
    picture(base / "test" / "images" / "test_0.JPEG", 255)


def pets(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, breeds = root / "oxford-iiit-pet", ["Abyssinian", "american_bulldog", "Egyptian_Mau"]
    for part, pairs in (("trainval", TRAIN), ("test", TEST)):
        for label, shade in pairs:
            picture(base / "images" / f"{breeds[label]}_{shade}.jpg", shade)
        text(base / "annotations" / f"{part}.txt", *(f"{breeds[label]}_{shade} {label + 1} 1 1" for label, shade in pairs))


def flowers102(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets as torchvision

    base, everything = root / "flowers-102", [*TRAIN, *VAL, *TEST]
    for i, (_, shade) in enumerate(everything, 1):
        picture(base / "jpg" / f"image_{i:05d}.jpg", shade)
    scipy.io.savemat(base / "imagelabels.mat", {"labels": np.array([label + 1 for label, _ in everything], np.uint8)})
    scipy.io.savemat(base / "setid.mat", {"trnid": np.arange(1, 4), "valid": np.arange(4, 7), "tstid": np.arange(7, 11)})
    files = {"image": ("102flowers.tgz", ""), "label": ("imagelabels.mat", ""), "setid": ("setid.mat", "")}
    sums = {key: (file, md5(base / file) if key != "image" else "") for key, (file, _) in files.items()}
    monkeypatch.setattr(torchvision.Flowers102, "_file_dict", sums)


def aircraft(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = root / "fgvc-aircraft-2013b" / "data"
    text(base / "variants.txt", *NAMES["aircraft"])
    for part, pairs in (("trainval", TRAIN), ("test", TEST)):
        for _, shade in pairs:
            picture(base / "images" / f"{shade:07d}.jpg", shade)
        text(base / f"images_variant_{part}.txt", *(f"{shade:07d} {NAMES['aircraft'][label]}" for label, shade in pairs))


def cars(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = root / "stanford_cars"
    for part, pairs, notes in (("train", TRAIN, "devkit/cars_train_annos.mat"), ("test", TEST, "cars_test_annos_withlabels.mat")):
        for i, (_, shade) in enumerate(pairs, 1):
            picture(base / f"cars_{part}" / f"{i:05d}.jpg", shade)
        rows = [(39, 116, 569, 375, label + 1, f"{i:05d}.jpg") for i, (label, _) in enumerate(pairs, 1)]
        kinds = [(key, object) for key in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
        (base / notes).parent.mkdir(exist_ok=True)
        scipy.io.savemat(base / notes, {"annotations": np.array(rows, kinds)})
    scipy.io.savemat(base / "devkit" / "cars_meta.mat", {"class_names": np.array(NAMES["cars"], object)})


def dtd(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = root / "dtd" / "dtd"
    for part, pairs in (("train", TRAIN), ("val", VAL), ("test", TEST)):
        names = [f"{NAMES['dtd'][label]}/{NAMES['dtd'][label]}_{shade:04d}.jpg" for label, shade in pairs]
        for name, (_, shade) in zip(names, pairs, strict=True):
            picture(base / "images" / name, shade)
        text(base / "labels" / f"{part}1.txt", *names)


def eurosat(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for label, shade in [*TRAIN, *VAL, *TEST]:
        name = NAMES["eurosat"][label]
        picture(root / "eurosat" / "2750" / name / f"{name}_{shade}.jpg", shade)


def fer_rows() -> list[tuple[int, str, str]]:
    uses = [*["Training"] * len(TRAIN), "PublicTest", *["PrivateTest"] * (len(TEST) - 1)]
    return [(label, " ".join([str(shade)] * 48 * 48), use) for (label, shade), use in zip([*TRAIN, *TEST], uses, strict=True)]


def fer2013(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets as torchvision

    (root / "fer2013").mkdir(parents=True)
    path = root / "fer2013" / "fer2013.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("emotion", "pixels", "Usage"), *fer_rows()])
    monkeypatch.setitem(torchvision.FER2013._RESOURCES, "fer", (path.name, md5(path)))


def icml(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same data, the other of the two files that have all labels."""
    from torchvision import datasets as torchvision

    (root / "fer2013").mkdir(parents=True)
    path = root / "fer2013" / "icml_face_data.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("emotion", " Usage", " pixels"), *((label, use, grays) for label, grays, use in fer_rows())])
    monkeypatch.setitem(torchvision.FER2013._RESOURCES, "icml", (path.name, md5(path)))


def caltech101(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = root / "caltech101" / "101_ObjectCategories"
    for label, name in enumerate(NAMES["caltech101"]):
        shades = [shade for other, shade in [*TRAIN, *VAL, *TEST] if other == label]
        for i, shade in enumerate(shades, 1):
            picture(base / name / f"image_{i:04d}.jpg", shade)
    picture(base / "BACKGROUND_Google" / "image_0001.jpg", 255)


def food101(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = root / "food-101"
    for part, pairs in (("train", TRAIN), ("test", TEST)):
        lists: dict[str, list[str]] = {}
        for label, shade in pairs:
            name = NAMES["food101"][label]
            lists.setdefault(name, []).append(f"{name}/{shade}")
            picture(base / "images" / name / f"{shade}.jpg", shade)
        text(base / "meta" / f"{part}.json", json.dumps(lists))


def country211(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part, pairs in (("train", TRAIN), ("valid", VAL), ("test", TEST)):
        for label, shade in pairs:
            picture(root / "country211" / part / NAMES["country211"][label] / f"{shade}.jpg", shade)


def sun397(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = root / "SUN397"
    text(base / "ClassName.txt", *(f"/{name[0]}/{name}" for name in NAMES["sun397"]))
    for label, shade in [*TRAIN, *VAL, *TEST]:
        name = NAMES["sun397"][label]
        picture(base / name[0] / name / f"sun_{shade}.jpg", shade)


def rendered_sst2(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part, pairs in (("train", TRAIN), ("valid", VAL), ("test", TEST)):
        for label, shade in pairs:
            if label < 2:
                picture(root / "rendered-sst2" / part / NAMES["rendered_sst2"][label] / f"{shade}.png", shade, "png")


_BATCHES: dict[str, Pairs] = {f"data_batch_{i}": [TRAIN[i - 1]] if i <= len(TRAIN) else [] for i in range(1, 6)}
WRITERS: dict[str, Callable[[Path, pytest.MonkeyPatch], None]] = {
    "fmnist": fmnist,
    "cifar10": cifar("cifar10", "cifar-10-batches-py", _BATCHES, "test_batch", "batches.meta", "labels", "label_names"),
    "cifar100": cifar("cifar100", "cifar-100-python", {"train": TRAIN}, "test", "meta", "fine_labels", "fine_label_names"),
    "tiny_imagenet": tiny_imagenet,
    "pets": pets,
    "flowers102": flowers102,
    "aircraft": aircraft,
    "cars": cars,
    "dtd": dtd,
    "eurosat": eurosat,
    "fer2013": fer2013,
    "caltech101": caltech101,
    "food101": food101,
    "country211": country211,
    "sun397": sun397,
    "rendered_sst2": rendered_sst2,
}
