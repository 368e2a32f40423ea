import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flora_hpc.cli import app
from flora_hpc.cli.report import _open
from flora_hpc.errors import UserError
from flora_hpc.records.hdf5file import Writer
from flora_hpc.records.opened import Run
from flora_hpc.report import figures
from flora_hpc.report.figures import Drawing
from tests.contracts.known_helpers import round_record, run_info


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return written(tmp_path / "first")


def written(folder: Path) -> Path:
    folder.mkdir()
    writer = Writer(folder / "run.h5", run_info())
    for number in range(3):
        writer.add(round_record(number, accuracy=0.5 + 0.1 * number))
    writer.close("finished")
    return folder


def refusal(*arguments: object) -> str:
    error = CliRunner().invoke(app, ["report", *map(str, arguments)]).exception
    assert isinstance(error, UserError), error
    return str(error)


def test_a_page_lies_beside_its_run(run: Path, invoke: Callable[..., str]) -> None:
    said = invoke("report", run)
    page = run / "report.html"
    assert said == f"{page}: {page.stat().st_size / 1000:.1f} kB\n"
    assert "<title>first</title>" in page.read_text()
    assert sorted(path.name for path in run.iterdir()) == ["report.html", "run.h5"]


def test_a_file_of_another_name_gets_a_page_of_its_name(run: Path, invoke: Callable[..., str]) -> None:
    (run / "run.h5").rename(run / "copy.h5")
    invoke("report", run / "copy.h5")
    assert (run / "copy.html").exists()


def test_several_runs_are_compared_in_the_working_directory(
    run: Path, invoke: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    invoke("report", "first", written(run.parent / "second"), "--title", "Two <runs>")
    assert "<h1>Two &lt;runs&gt;</h1>" in (run.parent / "comparison.html").read_text()


def test_a_run_given_twice_is_shown_once(run: Path, invoke: Callable[..., str]) -> None:
    said = invoke("report", run, run / "run.h5")
    assert "run.h5 is given twice, and shown once" in said
    assert (run / "report.html").exists()


def test_a_page_of_ours_is_replaced_and_no_other_file(run: Path, invoke: Callable[..., str], tmp_path: Path) -> None:
    invoke("report", run, "--title", "old")
    invoke("report", run, "--title", "new")
    assert "<h1>new</h1>" in (run / "report.html").read_text()
    other = tmp_path / "thesis.html"
    other.write_text("<h1>Mine</h1>")
    assert refusal(run, "-o", other) == (
        f"-o {other}: is there already and is no page of `flora-hpc report`; choose another name, or remove it"
    )
    assert other.read_text() == "<h1>Mine</h1>"


def test_wrong_places_are_told_before_any_work(run: Path, tmp_path: Path) -> None:
    assert refusal(run, "-o", tmp_path / "no" / "page.html").endswith(
        f"there is no directory {tmp_path / 'no'}; make it, or choose another place"
    )
    assert "is a directory; name a file in it" in refusal(run, "-o", tmp_path)
    (tmp_path / "file").touch()
    assert f"--figures {tmp_path / 'file'}: cannot be made" in refusal(run, "--figures", tmp_path / "file")
    assert not (run / "report.html").exists()


def test_a_format_without_figures_is_no_wish(run: Path, tmp_path: Path) -> None:
    assert refusal(run, "--format", "png") == "--format png: is for single figures; name their folder with --figures DIR"
    assert not (run / "report.html").exists()


def test_what_cannot_be_written_leaves_nothing_half(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "replace", full)
    page = tmp_path / "page.html"
    assert refusal(run, "-o", page) == f"-o {page}: cannot be written (No space left on device); choose another place with -o"
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


def test_what_is_no_run_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no run" in refusal(run, tmp_path / "empty")
    (tmp_path / "text.h5").write_text("no")
    assert "is not an HDF5 file" in refusal(tmp_path / "text.h5")


def test_more_runs_than_lines_are_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flora_hpc.cli.report.MOST_RUNS", 1)
    assert "2 runs are more than the 1 lines" in refusal(run, written(run.parent / "second"))


@pytest.mark.parametrize(("kind", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_figures_for_a_paper(
    run: Path, invoke: Callable[..., str], tmp_path: Path, kind: str, start: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "figures" / "of a paper"
    said = invoke("report", run, "--figures", folder, "--format", kind)
    files = sorted(path.name for path in folder.iterdir())
    assert len(files) == 11
    assert all(path.read_bytes().startswith(start) for path in folder.iterdir())
    assert all(name in said for name in files)
    before, drawings_of = (folder / f"accuracy.{kind}").read_bytes(), figures.drawings_of

    def only_accuracy(runs: Sequence[Run]) -> dict[str, list[Drawing]]:
        return {name: [each for each in drawings if each.name == "accuracy"] for name, drawings in drawings_of(runs).items()}

    monkeypatch.setattr(figures, "drawings_of", only_accuracy)
    invoke("report", run, "--figures", folder, "--format", kind)
    assert (folder / f"accuracy.{kind}").read_bytes() == before, "the same run gives the same bytes"


def test_a_comparison_reads_nothing_but_rounds(run: Path) -> None:
    """Of 24 runs with a million rows of clients each, the others would be more than many machines hold."""
    both = _open([run, written(run.parent / "second")])
    assert [list(each.tables) for each in both] == [["rounds"], ["rounds"]]
    assert "clients" in _open([run])[0].tables
