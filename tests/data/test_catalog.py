"""The catalog agrees with the installed torchvision, and with numbers worked out by hand."""

import inspect
from urllib.parse import urlsplit

import pytest
from torchvision import datasets as torchvision

from flora_hpc.data.datasets import _wordings
from flora_hpc.data.datasets._catalog import CATALOG
from flora_hpc.data.datasets._countries import COUNTRIES

FROM_TORCHVISION = [facts.name for facts in CATALOG.values() if facts.torchvision and facts.archives]


@pytest.mark.parametrize("name", FROM_TORCHVISION)
def test_archives_are_those_that_torchvision_names(name: str) -> None:
    facts = CATALOG[name]
    source = inspect.getsource(inspect.getmodule(getattr(torchvision, facts.torchvision)))
    for archive in facts.archives:
        address = urlsplit(archive.url)
        assert f"{address.scheme}://{address.netloc}" in source
        assert address.path.rsplit("/", 1)[1] in source
        assert archive.md5 is None or archive.md5 in source
    if any(archive.md5 is None for archive in facts.archives):
        assert "md5" not in source.lower()


def test_archives_and_ways_by_hand_exclude_each_other() -> None:
    assert [facts.name for facts in CATALOG.values() if facts.by_hand] == ["cars", "fer2013"]
    for facts in CATALOG.values():
        assert bool(facts.archives) != bool(facts.by_hand)


def test_numbers_of_images_are_those_that_authors_state() -> None:
    """Official parts added up by hand from the papers."""
    assert {name: facts.num_images for name, facts in CATALOG.items()} == {
        "fmnist": 70_000,
        "cifar10": 60_000,
        "cifar100": 60_000,
        "tiny_imagenet": 110_000,
        "pets": 7_349,
        "flowers102": 8_189,
        "aircraft": 10_000,
        "cars": 16_185,
        "dtd": 5_640,
        "eurosat": 27_000,
        "fer2013": 35_887,
        "caltech101": 8_677,
        "food101": 101_000,
        "country211": 63_300,
        "sun397": 108_754,
        "rendered_sst2": 9_613,
    }


def test_classes_are_as_many_as_torchvision_names() -> None:
    for facts in CATALOG.values():
        names = facts.class_names or getattr(getattr(torchvision, facts.torchvision or "CIFAR10"), "classes", None)
        if names:
            assert len(names) == facts.num_classes, facts.name
    assert CATALOG["country211"].num_classes == 211
    assert len(CATALOG["fer2013"].class_names) == 7


@pytest.mark.parametrize("facts", CATALOG.values(), ids=CATALOG)
def test_captions_have_one_place_for_the_name(facts: object) -> None:
    assert facts.caption.count("{}") == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("abbey", "abbey"),
        ("bus_interior", "bus interior"),
        ("apartment_building/outdoor", "outdoor apartment building"),
        ("theater/indoor_seats", "indoor seats theater"),
        ("train_station/platform", "train station platform"),
        ("car_interior/backseat", "car interior backseat"),
    ],
)
def test_scenes(name: str, words: str) -> None:
    assert _wordings.scene(name) == words


def test_countries_are_all_of_iso_3166_and_kosovo() -> None:
    assert len(COUNTRIES) == 249 + 1
    assert all(len(code) == 2 and code.isupper() for code in COUNTRIES)
    assert len(set(COUNTRIES.values())) == 250
    names = {"DE": "Germany", "GB": "United Kingdom", "CD": "Democratic Republic of the Congo", "ZW": "Zimbabwe", "XK": "Kosovo"}
    assert {code: COUNTRIES[code] for code in names} == names
    assert not any(name != name.strip() or "|" in name for name in COUNTRIES.values())


def test_tables_leave_other_names_alone_but_for_underscores() -> None:
    assert _wordings.thing("crocodile_head") == "crocodile head"
    assert _wordings.thing("Motorbikes") == "motorbike"
    assert _wordings.flower("pink-yellow dahlia?") == "pink-yellow dahlia"


def test_torchvisions_own_names_have_wordings_of_their_own() -> None:
    """Each of Fashion-MNIST's names is in the table: they are capitalised, and no wording is."""
    words = [CATALOG["fmnist"].wording(name) for name in torchvision.FashionMNIST.classes]
    assert words == [word.lower() for word in words]
    assert len(set(words)) == 10
    flowers = [CATALOG["flowers102"].wording(name) for name in torchvision.Flowers102.classes]
    assert len(set(flowers)) == 102
