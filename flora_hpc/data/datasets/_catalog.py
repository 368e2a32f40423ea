"""A card for each dataset that is read from disk: names, sizes and addresses, as the authors and torchvision state them.

All images that are not for testing are training images, official validation images included ("trainval"), as is usual with CLIP.
The captions come from the authors of CLIP and FLoRA. Sizes of downloads are approximate.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from flora_hpc.data.datasets import _wordings
from flora_hpc.data.datasets._wordings import Wording


@dataclass(frozen=True)
class Archive:
    """A file to download. torchvision looks for it at `path` below the root."""

    url: str
    path: str
    md5: str | None  # None: its authors publish none


@dataclass(frozen=True)
class DatasetCard:
    """A dataset: its content, its size, its source, and its files below the root."""

    name: str
    about: str  # one line
    caption: str  # {} stands for the wording of a class
    num_classes: int
    train: Mapping[str, int]  # official training parts, by torchvision's names, and their numbers of images
    test: Mapping[str, int]  # official test parts, likewise; empty: there is no official split
    download_bytes: int  # all archives together, approximate
    terms: str  # licence or terms of use, if stated
    needs: tuple[str, ...]  # paths that must exist below the root; "a or b" where either suffices
    archives: tuple[Archive, ...] = ()
    by_hand: str = ""  # if no archive can be downloaded: how to get the files, in one sentence; {root} stands for the root
    torchvision: str = ""  # torchvision's class; empty: this project reads the files
    class_names: tuple[str, ...] = ()  # if neither the files nor torchvision have names
    wording: Wording = field(default=_wordings.spaced)

    @property
    def num_images(self) -> int:
        """Number of images of all parts."""
        return sum(self.train.values()) + sum(self.test.values())

    @property
    def packages(self) -> tuple[str, ...]:
        """Extra packages that read the dataset: scipy reads MATLAB's files."""
        return ("scipy",) if any(need.endswith(".mat") for need in self.needs) else ()


def _folder(folder: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}" for name in names)


_CIFAR = "https://www.cs.toronto.edu/~kriz/"
_FMNIST = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_VGG = "https://www.robots.ox.ac.uk/~vgg/data/"
_OPENAI = "https://openaipublic.azureedge.net/clip/data/"

_CARDS = (
    DatasetCard(
        name="fmnist",
        about="Fashion-MNIST: 70,000 gray pictures of clothes, 28 x 28 pixels, 10 kinds.",
        caption="a photo of a {}.",
        num_classes=10,
        train={"train": 60_000},
        test={"test": 10_000},
        download_bytes=30_878_645,
        terms="MIT",
        needs=_folder(
            "FashionMNIST/raw",
            *("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
        ),
        archives=tuple(
            Archive(f"{_FMNIST}{file}", f"FashionMNIST/raw/{file}", md5)
            for file, md5 in (
                ("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
                ("train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
                ("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
                ("t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
            )
        ),
        torchvision="FashionMNIST",
        wording=_wordings.clothing,
    ),
    DatasetCard(
        name="cifar10",
        about="CIFAR-10: 60,000 photos of animals and vehicles, 32 x 32 pixels, 10 kinds.",
        caption="a photo of a {}.",
        num_classes=10,
        train={"train": 50_000},
        test={"test": 10_000},
        download_bytes=170_498_071,
        terms="none stated",
        needs=_folder("cifar-10-batches-py", *(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"),
        archives=(Archive(f"{_CIFAR}cifar-10-python.tar.gz", "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),),
        torchvision="CIFAR10",
    ),
    DatasetCard(
        name="cifar100",
        about="CIFAR-100: 60,000 photos of animals, plants and things, 32 x 32 pixels, 100 kinds.",
        caption="a photo of a {}.",
        num_classes=100,
        train={"train": 50_000},
        test={"test": 10_000},
        download_bytes=169_001_437,
        terms="none stated",
        needs=_folder("cifar-100-python", "train", "test", "meta"),
        archives=(Archive(f"{_CIFAR}cifar-100-python.tar.gz", "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),),
        torchvision="CIFAR100",
    ),
    DatasetCard(
        name="tiny_imagenet",
        about="Tiny ImageNet: 110,000 photos of 64 x 64 pixels, 200 of ImageNet's kinds; its official validation images test.",
        caption="a photo of a {}.",
        num_classes=200,
        train={"train": 100_000},
        test={"val": 10_000},
        download_bytes=248_100_043,
        terms="ImageNet's: research and teaching, not commercial",
        needs=_folder("tiny-imagenet-200", "wnids.txt", "words.txt", "train", "val/val_annotations.txt", "val/images"),
        archives=(
            Archive(
                "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
                *("tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de"),
            ),
        ),
    ),
    DatasetCard(
        name="pets",
        about="Oxford-IIIT Pet: 7,349 photos of cats and dogs, 37 breeds.",
        caption="a photo of a {}, a type of pet.",
        num_classes=37,
        train={"trainval": 3_680},
        test={"test": 3_669},
        download_bytes=811_092_049,
        terms="CC BY-SA 4.0",
        needs=_folder("oxford-iiit-pet", "images", "annotations/trainval.txt", "annotations/test.txt"),
        archives=(
            Archive(f"{_VGG}pets/data/images.tar.gz", "oxford-iiit-pet/images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c"),
            Archive(
                f"{_VGG}pets/data/annotations.tar.gz", "oxford-iiit-pet/annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f"
            ),
        ),
        torchvision="OxfordIIITPet",
    ),
    DatasetCard(
        name="flowers102",
        about="Oxford 102 Flower: 8,189 photos of flowers common in the United Kingdom; most of them test.",
        caption="a photo of a {}, a type of flower.",
        num_classes=102,
        train={"train": 1_020, "val": 1_020},
        test={"test": 6_149},
        download_bytes=344_880_000,
        terms="none stated",
        needs=_folder("flowers-102", "jpg", "imagelabels.mat", "setid.mat"),
        archives=(
            Archive(f"{_VGG}flowers/102/102flowers.tgz", "flowers-102/102flowers.tgz", "52808999861908f626f3c1f4e79d11fa"),
            Archive(f"{_VGG}flowers/102/imagelabels.mat", "flowers-102/imagelabels.mat", "e0620be6f572b9609742df49c70aed4d"),
            Archive(f"{_VGG}flowers/102/setid.mat", "flowers-102/setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c"),
        ),
        torchvision="Flowers102",
        wording=_wordings.flower,
    ),
    DatasetCard(
        name="aircraft",
        about="FGVC-Aircraft: 10,000 photos of aircraft, 100 variants such as 737-700.",
        caption="a photo of a {}, a type of aircraft.",
        num_classes=100,
        train={"trainval": 6_667},
        test={"test": 3_333},
        download_bytes=2_753_340_328,
        terms="research, not commercial",
        needs=_folder(
            "fgvc-aircraft-2013b/data", "images", "variants.txt", "images_variant_trainval.txt", "images_variant_test.txt"
        ),
        archives=(Archive(f"{_VGG}fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz", "fgvc-aircraft-2013b.tar.gz", None),),
        torchvision="FGVCAircraft",
    ),
    DatasetCard(
        name="cars",
        about="Stanford Cars: 16,185 photos of cars, 196 makes, models and years.",
        caption="a photo of a {}.",
        num_classes=196,
        train={"train": 8_144},
        test={"test": 8_041},
        download_bytes=1_960_000_000,
        terms="research, not commercial",
        needs=_folder(
            "stanford_cars",
            *("cars_train", "cars_test", "cars_test_annos_withlabels.mat", "devkit/cars_train_annos.mat", "devkit/cars_meta.mat"),
        ),
        by_hand="its authors' site is gone, so put the folders cars_train, cars_test and devkit and the file "
        "cars_test_annos_withlabels.mat of someone's copy (Kaggle has some) into {root}/stanford_cars",
        torchvision="StanfordCars",
    ),
    DatasetCard(
        name="dtd",
        about="Describable Textures: 5,640 photos of 47 textures, from banded to zigzagged.",
        caption="{} texture.",
        num_classes=47,
        train={"train": 1_880, "val": 1_880},
        test={"test": 1_880},
        download_bytes=625_239_812,
        terms="research",
        needs=_folder("dtd/dtd", "images", "labels/train1.txt", "labels/val1.txt", "labels/test1.txt"),
        archives=(Archive(f"{_VGG}dtd/download/dtd-r1.0.1.tar.gz", "dtd/dtd-r1.0.1.tar.gz", "fff73e5086ae6bdbea199a49dfb8a4c1"),),
        torchvision="DTD",
    ),
    DatasetCard(
        name="eurosat",
        about="EuroSAT: 27,000 satellite photos of European land, 64 x 64 pixels, 10 uses; no official split.",
        caption="a centered satellite photo of {}.",
        num_classes=10,
        train={"all": 27_000},
        test={},
        download_bytes=94_280_567,
        terms="MIT",
        needs=("eurosat/2750",),
        archives=(
            Archive(
                "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
                *("eurosat/EuroSAT.zip", "c8fa014336c82ac7804f0398fcb19387"),
            ),
        ),
        torchvision="EuroSAT",
        wording=_wordings.land,
    ),
    DatasetCard(
        name="fer2013",
        about="FER2013: 35,887 gray pictures of faces, 48 x 48 pixels, 7 emotions; the public and the private test images test.",
        caption="a photo of a {} looking face.",
        num_classes=7,
        train={"train": 28_709},
        test={"test": 7_178},
        download_bytes=300_000_000,
        terms="the rules of the Kaggle competition",
        needs=("fer2013/fer2013.csv or fer2013/icml_face_data.csv",),  # train.csv and test.csv have no labels of the test images
        by_hand="Kaggle asks for an account, so download fer2013.csv or icml_face_data.csv from https://www.kaggle.com/c/"
        "challenges-in-representation-learning-facial-expression-recognition-challenge and put it into {root}/fer2013",
        torchvision="FER2013",
        class_names=("Angry", "Disgust", "Fear", "Happy", "Sad", "Surprise", "Neutral"),
        wording=_wordings.face,
    ),
    DatasetCard(
        name="caltech101",
        about="Caltech 101: 8,677 pictures of 101 kinds of things; no official split, and the background class is left out.",
        caption="a photo of a {}.",
        num_classes=101,
        train={"all": 8_677},
        test={},
        download_bytes=137_414_764,
        terms="CC BY 4.0",
        needs=("caltech101/101_ObjectCategories",),
        archives=(
            Archive(
                "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
                *("caltech101/caltech-101.zip", "3138e1922a9193bfa496528edbbc45d0"),
            ),
        ),
        torchvision="Caltech101",
        wording=_wordings.thing,
    ),
    DatasetCard(
        name="food101",
        about="Food-101: 101,000 photos of 101 dishes; labels of training images are noisy on purpose.",
        caption="a photo of {}, a type of food.",
        num_classes=101,
        train={"train": 75_750},
        test={"test": 25_250},
        download_bytes=4_996_278_331,
        terms="research; the photos are Foodspotting's",
        needs=_folder("food-101", "images", "meta/train.json", "meta/test.json"),
        archives=(
            Archive("http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz", "food-101.tar.gz", "85eeb15f3717b99a5da872d97d918f87"),
        ),
        torchvision="Food101",
    ),
    DatasetCard(
        name="country211",
        about="Country211: 63,300 photos of 211 countries, 300 each.",
        caption="a photo i took in {}.",
        num_classes=211,
        train={"train": 31_650, "valid": 10_550},
        test={"test": 21_100},
        download_bytes=11_000_000_000,
        terms="each photo's own Creative Commons licence (YFCC100M)",
        needs=_folder("country211", "train", "valid", "test"),
        archives=(Archive(f"{_OPENAI}country211.tgz", "country211.tgz", "84988d7644798601126c29e9877aab6a"),),
        torchvision="Country211",
        wording=_wordings.country,
    ),
    DatasetCard(
        name="sun397",
        about="SUN397: 108,754 photos of 397 kinds of places; torchvision has no official split.",
        caption="a photo of a {}.",
        num_classes=397,
        train={"all": 108_754},
        test={},
        download_bytes=39_100_000_000,
        terms="research",
        needs=("SUN397/ClassName.txt",),
        archives=(
            Archive(
                "http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz",
                *("SUN397.tar.gz", "8ca2778205c41d23104230ba66911c7a"),
            ),
        ),
        torchvision="SUN397",
        wording=_wordings.scene,
    ),
    DatasetCard(
        name="rendered_sst2",
        about="Rendered SST2: 9,613 pictures of sentences from film reviews, negative or positive.",
        caption="a {} review of a movie.",
        num_classes=2,
        train={"train": 6_920, "val": 872},
        test={"test": 1_821},
        download_bytes=131_000_000,
        terms="none stated",
        needs=_folder("rendered-sst2", "train", "valid", "test"),
        archives=(Archive(f"{_OPENAI}rendered-sst2.tgz", "rendered-sst2.tgz", "2384d08e9dcfa4bd55b324e610496ee5"),),
        torchvision="RenderedSST2",
    ),
)

CATALOG: Mapping[str, DatasetCard] = {card.name: card for card in _CARDS}
