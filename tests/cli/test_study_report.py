from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from flora_hpc.cli._study_report import parse_width
from flora_hpc.errors import UserError
from tests.conftest import refusal
from tests.contracts.known_helpers import CONFIG
from tests.report.made_studies import grid, write_run, write_study


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path / "ranks", grid(num_seeds=2, rounds=1, method__rank=[1, 2, 4])).path


def test_a_page_lies_in_its_study(study: Path, invoke: Callable[..., str]) -> None:
    said = invoke("study", "report", study)
    page = study / "report.html"
    assert said == f"{page}: {page.stat().st_size / 1000:.1f} kB\n"
    assert "<title>ranks</title>" in page.read_text()


def test_the_index_names_its_study(study: Path, invoke: Callable[..., str], tmp_path: Path) -> None:
    invoke("study", "report", study / "study.h5", "-o", tmp_path / "page.html", "--title", "Ranks <1>")
    assert "<h1>Ranks &lt;1&gt;</h1>" in (tmp_path / "page.html").read_text()


def test_figures_of_a_width_for_a_paper(study: Path, invoke: Callable[..., str], tmp_path: Path) -> None:
    options = ("--figures", tmp_path / "f", "--format", "svg", "--width", "8.4cm", "--label", "method.rank=rank")
    said = invoke("study", "report", study, *options)
    assert "accuracy.svg" in said
    text = (tmp_path / "f" / "accuracy.svg").read_text()
    assert f'width="{8.4 / 2.54 * 72:.6f}pt"' in text
    assert ">rank=4<" in text
    assert "method.rank" not in text


@pytest.mark.parametrize(("text", "inches"), [("3.3in", 3.3), ("8.4cm", 8.4 / 2.54), ("84 mm", 84 / 25.4), ("240pt", 240 / 72.27)])
def test_widths(text: str, inches: float, tmp_path: Path) -> None:
    assert parse_width(text, tmp_path) == pytest.approx(inches)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("3.3", "--width 3.3: is no length; give for example 3.3in, 8.4cm, 84mm or 240pt"),
        ("wide", "--width wide: is no length; give for example 3.3in, 8.4cm, 84mm or 240pt"),
        ("-3in", "--width -3in: is no length; give for example 3.3in, 8.4cm, 84mm or 240pt"),
        ("10mm", "--width 10mm: is 0.394 inches; a figure has 2 to 30 inches"),
        ("9999in", "--width 9999in: is 1e+04 inches; a figure has 2 to 30 inches"),
    ],
)
def test_what_is_no_width(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        parse_width(text, tmp_path)
    assert str(error.value) == sentence


def test_mistakes_are_told_before_any_work(study: Path, tmp_path: Path) -> None:
    out = ("-o", tmp_path / "page.html")
    said = [
        refusal("study", "report", study, *out, "--width", "3in"),
        refusal("study", "report", study, *out, "--format", "png"),
        refusal("study", "report", study, *out, "--figures", tmp_path / "f", "--label", "rank"),
        refusal("study", "report", study, *out, "--figures", tmp_path / "f", "--label", "lr=x"),
        refusal("study", "report", tmp_path, *out),
        refusal("study", "report", study / "points" / "p0", *out),
        refusal("study", "report", study, study / "points" / "p0", *out),
    ]
    assert said == [
        "--width 3in: is for single figures; name their folder with --figures DIR",
        "--format png: is for single figures; name their folder with --figures DIR",
        "--label rank: is not KEY=TEXT; give for example --label method.rank=rank",
        "--label lr=x: 'lr' is no key and no value of this study (keys: method.rank)",
        f"{tmp_path}: holds no study (looked for {tmp_path / 'study.h5'}); give the directory of `flora-hpc study --out`",
        f"{study / 'points' / 'p0'}: holds a run and no study; `flora-hpc report {study / 'points' / 'p0'}` explains it",
        f"{study}: is a study; give one study alone, or several run directories",
    ]
    assert not (tmp_path / "page.html").exists()
    assert not (tmp_path / "f").exists()


def test_nothing_has_finished(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "s", [({"a": 1}, "waiting")]).path
    assert refusal("study", "report", folder) == f"{folder}: no point has finished yet (1 waiting); make the page when one has"
    assert not (folder / "report.html").exists()


def test_runs_that_no_study_made(tmp_path: Path, invoke: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Grouped by what differs apart from the seed, and more than the 24 that `report` compares."""
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(CONFIG)
    runs = [
        write_run(
            tmp_path / f"lr{lr}-{seed}", [0.1, 0.5], seed=seed, config=yaml.safe_dump(config | {"seed": seed, "client": {"lr": lr}})
        )
        for lr in (0.001, 0.01)
        for seed in range(13)
    ]
    assert "`flora-hpc study report RUN...` groups them" in refusal("report", *runs)
    invoke("study", "report", *runs)
    text = (tmp_path / "comparison.html").read_text()
    assert "<h1>26 runs compared</h1>" in text
    assert "26 points in 2 settings: 26 finished." in text
    assert "mean over n\u00a0=\u00a013 seeds" in text
    assert "client.lr=0.01" in text
