import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flora_hpc.errors import UserError
from flora_hpc.records.study import FOLDER, Study
from flora_hpc.report import papers, study_captions, study_figures, study_page, study_results
from flora_hpc.report.study_finals import map_axes, map_cells
from flora_hpc.report.study_lines import overview, style_of
from flora_hpc.report.style import NothingError, styled
from tests.report.made_studies import NAN, grid, write_study

ALWAYS = ["accuracy", "loss", "accuracy-by-bytes", "accuracy-by-training", "accuracy-by-seconds", "final"]


def figures(text: str) -> list[str]:
    return re.findall(r'<figure class="[\w ]+" id="([^"]+)"', text)


def empty(text: str) -> dict[str, str]:
    """Figures that a page leaves out, and why."""
    return dict(re.findall(r'class="\w+ none" id="([^"]+)"><figcaption><h3>[^<]*</h3><p>([^<]*)</p>', text))


def page(study: Study, *labels: str) -> str:
    return study_page.make(study_results.read(study, labels))


def cells(text: str) -> list[list[str]]:
    """The texts of the first table of final numbers."""
    table = text.partition("<h2>Final numbers</h2>")[2].partition("</table>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.S)
    return [[re.sub("<[^>]*>", "", cell).strip() for cell in re.findall(r"<t[hd].*?</t[hd]>", row)] for row in rows]


def test_a_study_of_one_key(tmp_path: Path) -> None:
    text = page(write_study(tmp_path / "ranks", grid(method__rank=[1, 2, 4])))
    assert "<h1>ranks</h1>" in text
    assert "9 points in 3 settings: 9 finished." in text
    assert sorted(figures(text)) == sorted([*ALWAYS, "final-by-method.rank"])
    assert empty(text) == {}
    assert "<script" not in text
    assert "A line is the mean over n\u00a0=\u00a03 seeds, its band the 95\u00a0% t-interval of the mean." in text
    assert "The horizontal axis is logarithmic. The axis of accuracy does not start at zero." in text


def test_a_study_of_two_keys_has_panels_and_a_map(tmp_path: Path) -> None:
    text = page(write_study(tmp_path / "s", grid(method__name=["flora", "fedtext"], partition__beta=[0.1, 1.0, 10.0])))
    assert set(figures(text)) == {*ALWAYS, "panels", "heat-map", "final-by-partition.beta"}
    assert "a panel for each method.name" in text


def test_the_table_has_the_numbers_of_the_statistics(tmp_path: Path) -> None:
    """Final accuracies 0.5, 0.6 and 0.7: 60 ± 10 %, and 24.84 around it. Each trained round sends 300 bytes up and 300 down."""
    made = [({"a": 1, "seed": seed}, [0.1, 0.9, 0.5 + 0.1 * seed]) for seed in range(3)]
    text = page(write_study(tmp_path / "s", [*made, ({"a": 2, "seed": 0}, [0.1, 0.3, 0.2])]))
    names, first, second = cells(text)
    assert names[:2] == ["a", "n"]
    assert first[:6] == ["1", "3", "60.00 ± 10.00\u00a0%", "35.16 to 84.84\u00a0%", "90.00 ± 0.00\u00a0%", "1.2 kB"]
    assert second[:5] == ["2", "1", "20.00\u00a0%", "-", "30.00\u00a0%"]
    assert first[6:] == ["1.12 s", "3.00 s"], "training alone; whole rounds, round 0 included"


def test_validation_and_personal_accuracy_where_there_are_any(tmp_path: Path) -> None:
    changes = {"validation_accuracy": 0.25, "personal_accuracy_mean": 0.75}
    names, first = cells(page(write_study(tmp_path / "s", [({"seed": 0}, [0.1, 0.5])], changes)))
    assert names == [
        "n", "finalaccuracy", "95 % intervalof the mean", "best", "validation", "at bestvalidation", "personal", "sent upand down",
        "time intraining", "time inrounds",
    ]  # fmt: skip
    assert first[4:7] == ["25.00\u00a0%", "50.00\u00a0%", "75.00\u00a0%"]
    text = page(write_study(tmp_path / "t", grid(a=[1, 2]), changes))
    assert "personal" in figures(text)
    assert "personal" not in figures(page(write_study(tmp_path / "u", grid(a=[1, 2]))))


def test_one_seed_has_no_band_and_says_so(tmp_path: Path) -> None:
    text = page(write_study(tmp_path / "s", grid(num_seeds=1, a=[1, 2, 3])))
    assert "One seed a setting, so no band." in text
    assert "t-interval" not in text
    results = study_results.read(write_study(tmp_path / "t", grid(num_seeds=1, a=[1, 2])))
    with styled():
        axes = study_figures.drawings(results)["What was learned"][0].draw(4.7).axes[0]
    assert len(axes.lines) == 2
    assert len(axes.collections) == 0


def test_intervals_that_leave_the_axis_are_told(tmp_path: Path) -> None:
    """Of two seeds the interval is 12.7 standard errors to each side."""
    made = [({"a": a, "seed": seed}, [0.1, 0.5 + 0.01 * a + 0.05 * seed]) for a in (1, 2, 3) for seed in (0, 1)]
    text = page(write_study(tmp_path / "s", made))
    assert text.count("Intervals that are much wider than the differences are cut.") == 2
    assert "Intervals" not in page(write_study(tmp_path / "t", grid(a=[1, 2, 3])))


def test_one_setting_alone(tmp_path: Path) -> None:
    text = page(write_study(tmp_path / "s", grid()))
    assert figures(text) == ALWAYS
    assert "all points" in text


def test_failed_points_are_counted_and_named_with_their_message(tmp_path: Path) -> None:
    made = [
        *grid(a=[1, 2]),
        *(({"a": 3, "seed": seed}, "the loss is <NaN>") for seed in range(8)),
        ({"a": 4, "seed": 0}, "waiting"),
    ]
    text = page(write_study(tmp_path / "s", made))
    assert "15 points in 4 settings: 1 waiting, 6 finished, 8 failed." in text
    assert '8 points failed: <a href="#failed">why</a>' in text
    assert "the loss is &lt;NaN&gt;</td><td>a=3, seed 0; a=3, seed 1;" in text
    assert "; and 2 more</td>" in text
    assert "<th scope=row>a</th><td>1, 2, 3, 4</td>" in text, "what was played, failed points included"
    assert "4, 1 to 8 points each; 2 have a finished point" in text


def test_nothing_finished_is_told_with_a_sentence(tmp_path: Path) -> None:
    study = write_study(tmp_path / "s", [({"a": 1}, "waiting"), ({"a": 2}, "oh")])
    with pytest.raises(UserError) as error:
        study_results.check(study)
    assert str(error.value) == f"{tmp_path / 's'}: no point has finished yet (1 waiting, 1 failed); make the page when one has"


def test_a_study_that_was_never_tested(tmp_path: Path) -> None:
    made = [({"a": a, "b": b, "seed": 0}, [NAN, NAN]) for a in (1, 2, 3) for b in (1, 2)]
    text = page(write_study(tmp_path / "s", made))
    assert set(empty(text)) == set(figures(text)) - {"loss"}
    assert "nan" not in text
    assert "best final accuracy" not in text


def test_no_trained_round(tmp_path: Path) -> None:
    text = page(write_study(tmp_path / "s", [({"a": a, "seed": 0}, [0.5]) for a in (1, 2)]))
    assert empty(text)["loss"] == "No round was trained."
    assert empty(text)["accuracy-by-bytes"] == "No run has sent a byte: there is nothing to compare with."


def test_keys_values_labels_and_messages_cannot_break_the_page(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script> & $x_1 \x07{{ 7 * 7 }}"
    study = write_study(
        tmp_path / "s", [*grid(**{"key": [bad, "b", "c"]}, other=[1, 2]), ({"key": "d", "other": 1, "seed": 0}, bad)]
    )
    text = study_page.make(study_results.read(study, [f"other={bad}", f"b={bad}"]), bad)
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; $x_1" in text
    assert "{{ 7 * 7 }}" in text


def test_labels_are_everywhere(tmp_path: Path) -> None:
    study = write_study(tmp_path / "s", grid(method__rank=[1, 2, 4], partition__beta=[0.1, 10.0]))
    text = page(study, "method.rank=rank", "partition.beta=skew").partition("<details>")[0]
    assert "rank=4" in text
    assert "skew=0.1" in text
    assert not [name for name in ("method.rank", "partition.beta") if name in re.sub(r'(?:id|href)="[^"]*"|url\([^)]*\)', "", text)]


def test_names_in_a_page_are_there_once_and_lead_somewhere(tmp_path: Path) -> None:
    text = page(write_study(tmp_path / "s", [*grid(a=[1, 2, 3], b=["x", "y"]), ({"a": 4, "b": "x", "seed": 0}, "no")]))
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)


def test_runs_that_cannot_be_read_leave_the_others(tmp_path: Path) -> None:
    study = write_study(tmp_path / "s", grid(a=[1, 2]))
    (study.path / FOLDER / "p0" / "run.h5").write_text("no")
    (study.path / FOLDER / "p1" / "run.h5").unlink()
    results = study_results.read(study)
    assert [group.bands["test_accuracy"].n.max() for group in results.groups] == [1, 3]
    assert [group.final.n for group in results.groups] == [3, 3], "the table has what the index knows"
    text = study_page.make(results)
    assert "p0/run.h5: is not an HDF5 file" in text
    assert "p1: its run directory is gone; the table has its numbers, the curves lack it" in text


def test_a_setting_looks_the_same_in_every_figure(tmp_path: Path) -> None:
    """Colours stand for the key with more values, dashes for the other."""
    results = study_results.read(write_study(tmp_path / "s", grid(num_seeds=1, a=[1, 2, 3], b=["x", "y"])))
    styles = {results.name(group): style_of(results, group) for group in results.groups}
    assert styles["a=1, b=x"]["color"] == styles["a=1, b=y"]["color"] != styles["a=2, b=x"]["color"]  # type: ignore[index]
    assert styles["a=1, b=x"]["linestyle"] == styles["a=2, b=x"]["linestyle"] != styles["a=1, b=y"]["linestyle"]  # type: ignore[index]


def test_more_settings_than_lines_name_the_best_and_the_worst(tmp_path: Path) -> None:
    results = study_results.read(write_study(tmp_path / "s", grid(num_seeds=1, rounds=1, a=list(range(30)))))
    drawn = overview(results, results.groups)
    coloured = [results.name(group) for group, style in drawn if style["zorder"] >= 4]
    assert (len(drawn), coloured) == (30, ["a=0", "a=29"])
    assert "30 settings: only the best and the worst final accuracy have colours" in study_captions.curves(results)


def test_many_settings_have_the_best_ones_on_top_and_all_folded(tmp_path: Path) -> None:
    text = page(write_study(tmp_path / "s", grid(num_seeds=1, rounds=1, a=list(range(40)))))
    assert [row[0] for row in cells(text)[1:]] == [str(39 - place) for place in range(10)]
    assert "<summary>All 40 settings</summary>" in text


def test_other_keys_are_left_to_the_best_setting(tmp_path: Path) -> None:
    """By test accuracy; by validation accuracy where every setting has one, even if its test accuracy is lower."""
    made = [({"a": a, "b": b, "lr": lr, "seed": 0}, [0.1, 0.5 + 0.1 * lr]) for a in (1, 2) for b in (1, 2) for lr in (1, 2, 3)]
    results = study_results.read(write_study(tmp_path / "s", made))
    axes = map_axes(results)
    assert axes is not None
    assert (axes[0].key, axes[1].key) == ("lr", "a")
    assert "Settings also differ in b: of these, the one with the best final test accuracy." in study_captions.heat_map(results)
    assert map_cells(results, *axes)[2, 0] == pytest.approx(0.8)
    validated = study_results.read(write_study(tmp_path / "t", made, {"validation_accuracy": 0.5}))
    assert "best final validation accuracy" in study_captions.heat_map(validated)


@pytest.mark.parametrize("kind", ["pdf", "svg", "png"])
def test_figures_have_the_same_bytes_each_time(tmp_path: Path, kind: str) -> None:
    study = write_study(tmp_path / "s", grid(a=[1, 2, 4], b=["x", "y"]))
    contents: list[dict[str, bytes]] = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        drawings = [drawing for drawn in study_figures.drawings(study_results.read(study)).values() for drawing in drawn]
        names, missing = papers.write(
            {
                drawing.name: partial(drawing.draw, 3.3)
                for drawing in drawings
                if drawing.name in ("accuracy", "panels", "heat-map")
            },
            tmp_path / name,
            kind,
            small=True,
        )
        assert (len(names), missing) == (3, {})
        contents.append({file: (tmp_path / name / file).read_bytes() for file in names})
    assert contents[0] == contents[1]


@pytest.mark.parametrize("width", [2.0, 3.3, 7.0])
def test_figures_have_the_width_that_is_asked_for(tmp_path: Path, width: float) -> None:
    results = study_results.read(
        write_study(tmp_path / "s", grid(method__name=["flora", "fedtext"], partition__beta=[0.1, 1.0, 10.0]))
    )
    with styled(small=True):
        for drawn in study_figures.drawings(results).values():
            for drawing in drawn:
                figure = drawing.draw(width)
                figure.draw_without_rendering()
                assert figure.get_size_inches()[0] == width
                right = [text.get_window_extent().x1 for legend in figure.legends for text in legend.get_texts()]
                assert max(right, default=0) <= figure.bbox.x1, f"{drawing.name}: the key is cut"


def test_settings_that_end_far_apart_have_a_logarithmic_axis(tmp_path: Path) -> None:
    made: Any = [({"rounds": rounds, "seed": 0}, [0.1 + 0.001 * number for number in range(rounds + 1)]) for rounds in (2, 60)]
    results = study_results.read(write_study(tmp_path / "s", made))
    drawing = study_figures.drawings(results)["What it cost"][0]
    with styled():
        axes = drawing.draw(4.7).axes[0]
    assert axes.get_xscale() == "log"
    assert "The horizontal axis is logarithmic." in drawing.caption()
    assert all((line.get_xdata() > 0).all() for line in axes.lines), "round 0, which costs nothing, is not drawn"


def test_what_cannot_be_drawn_is_told(tmp_path: Path) -> None:
    results = study_results.read(write_study(tmp_path / "s", [({"seed": 0}, [NAN])]))
    with styled(), pytest.raises(NothingError, match=r"^No round was evaluated\.$"):
        study_figures.drawings(results)["What was learned"][0].draw(4.7)
