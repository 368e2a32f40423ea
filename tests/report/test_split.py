import io
import warnings
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from flora_hpc.data.mix import Mix, divergence
from flora_hpc.errors import UserError
from flora_hpc.report import split, words

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def made(counts: list[list[int]], names: tuple[str, ...] | None = None, num_clients: int | None = None, nobodys: int = 0) -> Mix:
    """A mix of clients with these counts, all of whom are shown and examined."""
    array = np.array(counts)
    held = array.sum(0)
    available = held + nobodys
    return Mix(
        clients=np.arange(len(counts)),
        counts=array,
        sizes=array.sum(1),
        classes=(array > 0).sum(1),
        divergences=divergence(array, available),
        by_chance=0.02,
        class_names=names or tuple(f"class {i}" for i in range(array.shape[1])),
        available=available,
        held=held,
        num_clients=num_clients or len(counts),
        exact=True,
    )


def random(num_clients: int, num_classes: int) -> Mix:
    counts = np.random.default_rng(0).negative_binomial(1, 0.1, (num_clients, num_classes))
    counts[:, 0] += 1
    return made(counts.tolist())


def text(mix: Mix, width: int = 80, facts: dict[str, str] | None = None) -> str:
    console = Console(file=io.StringIO(), width=width, no_color=True, force_terminal=False)
    console.print(split.terminal(mix, width, facts))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


SHAPES = {
    "few classes": random(10, 10),
    "one client": random(1, 3),
    "one class": random(5, 1),
    "one client of one class": made([[4]]),
    "eleven classes": random(10, 11),
    "many classes": random(50, 100),
    "very many classes": random(10, 397),
    "many clients": random(1000, 10),
    "many of both": random(100, 60),
    "many alike": made([[1, 1]] * 100),
    "nobody's": made([[3, 1], [2, 4]], nobodys=7),
    "long names": made([[3, 1], [2, 4]], ("a very long name of a class of images " * 3, "another one\nof two lines")),
    "other scripts": made([[3, 1], [2, 4]], ("犬", "猫")),
    "odd names": made([[3, 1], [2, 4]], ("[red]rose[/]", "$x_1$ & <b>")),
}


# --- words


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ([[5, 5], [5, 5]], "IID: every client holds all 2 classes; each has 10 examples."),
        ([[5, 5], [5, 6]], "IID: every client holds all 2 classes; each has 10 or 11 examples."),
        ([[5, 5], [50, 50]], "Alike in classes, not in size: every client holds all 2 classes; the largest holds 10 times as"),
        ([[9, 0, 0], [0, 9, 0], [0, 0, 9]], "Strongly skewed: every client holds 1 of 3 classes; each has 9 examples."),
        ([[12, 4], [4, 12]], "Mildly skewed: every client holds all 2 classes; each has 16 examples."),
        ([[10, 0], [10, 15]], "Skewed: clients hold 1 to 2 of 2 classes; the largest holds 2.5 times as much as the smallest."),
        ([[3, 0, 1]], "One client: it holds 4 examples of 2 of 3 classes."),
        ([[1]], "One client: it holds 1 example of the only class."),
    ],
)
def test_one_sentence_says_what_kind_of_split_it_is(counts: list[list[int]], said: str) -> None:
    assert words.sentence(made(counts)).startswith(said)


@pytest.mark.parametrize(
    ("by_chance", "kind"), [(0.02, "Strongly skewed"), (0.5, "Skewed"), (0.6, "Too few examples to tell from chance")]
)
def test_small_clients_differ_by_chance(by_chance: float, kind: str) -> None:
    """These hold 2 of 10 classes each, which is a divergence of 0.61."""
    counts = np.repeat(np.eye(5, dtype=int), 2, axis=1)
    assert words.sentence(replace(made(counts.tolist()), by_chance=by_chance)).startswith(f"{kind}: ")


@pytest.mark.parametrize("counts", [[[5, 5], [50, 50]], [[4]], random(40, 60).counts.tolist()])
def test_pairs_have_captions_and_no_classes(counts: list[list[int]], tmp_path: Path) -> None:
    mix = replace(made(counts, tuple(f"picture {i}" for i in range(len(counts[0])))), unit="caption")
    for width in (80, 120):
        assert "captions" in text(mix, width)
        assert "class" not in text(mix, width)
    split.figure(mix, tmp_path / "a.svg", "pairs")
    assert "class" not in "".join(ElementTree.parse(tmp_path / "a.svg").getroot().itertext())


def test_few_examples_of_two_classes_do_not_tell_either() -> None:
    """A client of one of two classes has a divergence of 0.31, the most that there is."""
    mix = made([[1, 0], [0, 1], [2, 2], [2, 2]])
    assert words.sentence(replace(mix, by_chance=0.15)).startswith("Too few examples to tell from chance: clients hold 1 to 2 of 2")
    assert words.sentence(replace(made([[1, 1], [1, 1]]), by_chance=0.15)).startswith("IID: "), "as even as can be"
    assert words.sentence(replace(made([[8, 9], [70, 70]]), by_chance=0.02)).startswith("Alike in classes, not in size: ")


def test_details() -> None:
    assert words.details(made([[2, 2], [6, 0]], nobodys=3)) == {
        "clients": "2",
        "examples": "10, each in one client",
        "smallest, largest": "4 and 6 examples (median 5)",
        "classes per client": "1 to 2 of 2 (median 2)",
        "divergence": "0.10 in the mean, 0.18 at worst; 0.02 by chance alone",
        "nobody's": "6 of 16 training images",
    }


def test_facts_tell_on_how_many_clients_they_rest() -> None:
    assert words.details(made([[2, 2]] * 5, num_clients=500))["clients"] == (
        "500; what follows is of 5 of them, spread evenly over all"
    )


def test_names_fit_on_a_line() -> None:
    assert words.plain("a\n b\x1b[31m", 20) == "a b [31m"
    assert words.plain("0123456789" * 2, 10) == "012345…789"


# --- the terminal


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_picture_fits_and_says_what_it_is(shape: str, width: int) -> None:
    shown = text(SHAPES[shape], width, {"dataset": "some"})
    assert max(map(len, shown.splitlines())) <= width
    assert words.sentence(SHAPES[shape])[:60] in shown.replace("\n", " ")
    for fact in ("dataset", "clients", "examples", "classes per client", "divergence", "nobody's"):
        assert fact in shown


def test_each_client_has_a_line() -> None:
    """Its id, examples, a bar, the share of each class in its own glyph, the number of classes and the divergence."""
    lines = text(made([[4, 4, 0], [0, 0, 2]], DIGITS[:3])).splitlines()
    first, second = (next(line for line in lines if line.startswith(f"     {client} ")) for client in (0, 1))
    assert first.split()[1:3] == ["8", "████████"]
    assert second.split()[1:3] == ["2", "██"]
    assert set(first.split()[3]) == {"0", "1"}
    assert first.split()[3].count("0") == pytest.approx(len(first.split()[3]) / 2, abs=0.5)
    assert set(second.split()[3]) == {"2"}
    assert first.split()[4:] == ["2", "0.11"]
    assert second.split()[4:] == ["1", "0.61"]


def test_a_class_that_is_held_is_seen() -> None:
    line = next(line for line in text(made([[1, 9999, 1], [5, 5, 5]])).splitlines() if line.startswith("     0 "))
    assert {"0", "1", "2"} == set(line.split()[3])


def test_many_clients_are_summed_up() -> None:
    shown = text(SHAPES["many clients"])
    assert len(shown.splitlines()) < 60
    assert "30 of 1,000 clients, spread evenly from the largest to the smallest" in shown
    assert "clients by number of examples" in shown


def test_shades_stand_for_many_classes() -> None:
    counts = np.zeros((2, 20), int)
    counts[0, :10], counts[1, 10:] = 1, 1
    line = next(line for line in text(made(counts.tolist())).splitlines() if line.startswith("     1 "))
    assert line.split("  ████████  ")[1].startswith(" " * 10 + "█" * 10)


def test_names_are_not_read_as_markup() -> None:
    shown = text(SHAPES["odd names"], facts={"dataset": "[bold]x[/]"})
    assert "[red]rose[/]" in shown
    assert "[bold]x[/]" in shown


# --- the page


@pytest.mark.parametrize("shape", SHAPES)
def test_pictures_are_files_of_their_kind(shape: str, tmp_path: Path) -> None:
    for suffix in ("png", "svg"):
        split.figure(SHAPES[shape], tmp_path / f"picture.{suffix}", f"{shape}: [red]a title[/] of $1")
    with Image.open(tmp_path / "picture.png") as image:
        image.load()
        assert image.format == "PNG"
        assert image.width > 800
    assert ElementTree.parse(tmp_path / "picture.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["picture.png", "picture.svg"]


@pytest.mark.parametrize("suffix", [".png", ".svg", ".SVG"])
def test_the_same_split_gives_the_same_bytes(suffix: str, tmp_path: Path) -> None:
    one, other = tmp_path / f"one{suffix}", tmp_path / f"other{suffix}"
    for path in (one, other):
        split.figure(SHAPES["many clients"], path, "title")
    assert one.read_bytes() == other.read_bytes()
    assert b"<dc:date>" not in one.read_bytes()


def test_drawing_leaves_the_settings_of_matplotlib_alone(tmp_path: Path) -> None:
    import matplotlib as mpl

    with mpl.rc_context({"font.size": 31.0}), warnings.catch_warnings():
        split.figure(SHAPES["few classes"], tmp_path / "a.png", "title")
        assert mpl.rcParams["font.size"] == 31
    split.figure(SHAPES["few classes"], tmp_path / "b.png", "title")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("name", ["picture.jpeg", "picture"])
def test_another_suffix_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a picture is a \.png or a \.svg file"):
        split.figure(SHAPES["few classes"], tmp_path / name, "title")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "directory.png").mkdir()
    for path in (tmp_path / "none" / "a.png", tmp_path / "file" / "a.png", tmp_path / "directory.png"):
        with pytest.raises(UserError, match="cannot write a picture there: "):
            split.figure(SHAPES["one client"], path, "title")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory.png", "file"]
