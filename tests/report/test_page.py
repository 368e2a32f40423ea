import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from flora_hpc import open_run
from flora_hpc.bench import madeup as made_up
from flora_hpc.records import views
from flora_hpc.records.hdf5file import Writer
from flora_hpc.records.opened import Run
from flora_hpc.records.schema import RANKS
from flora_hpc.records.split import Split
from flora_hpc.report import columns, figures, page, svg, timing
from flora_hpc.report.style import DARK, NothingError, new, styled
from tests.contracts.known_helpers import CONFIG, round_record, rows, run_info
from tests.records.old_files import write_old


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Run]:
    """A run of some rounds in a directory of its own; `facts` go into its RunInfo."""

    def build(name: str = "run", rounds: int = 2, accuracy: float = 0.5, **info: object) -> Run:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        writer = Writer(folder / "run.h5", run_info(**info))
        for number in range(rounds + 1):
            writer.add(round_record(number, accuracy + 0.01 * number))
        writer.close("finished")
        return open_run(folder)

    return build


def empty(text: str) -> dict[str, str]:
    """Figures that a page leaves out, and why."""
    return dict(re.findall(r'class="\w+ none" id="([\w-]+)"><figcaption><h3>[^<]*</h3><p>([^<]*)</p>', text))


def test_a_page_needs_nothing_else(make: Callable[..., Run]) -> None:
    text = page.make([make()])
    assert "<script" not in text
    addresses = re.findall(r'(?:href|src)="([^"]*)"|url\(([^)]*)\)|@import', text)
    assert all((one or other).startswith(("#", "data:")) for one, other in addresses)
    assert empty(text) == {}


def test_names_in_a_page_are_there_once_and_lead_somewhere(make: Callable[..., Run]) -> None:
    text = page.make([make()])
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)


def test_figures_that_compare_ranks_need_two(make: Callable[..., Run]) -> None:
    def names(run: Run) -> set[str]:
        return {drawing.name for drawings in figures.drawings_of([run]).values() for drawing in drawings}

    assert names(make("two", world_size=2)) - names(make("one", world_size=1)) == {"ranks", "memory"}


def test_every_figure_has_a_name_for_those_who_do_not_see_it(make: Callable[..., Run]) -> None:
    text = page.make([make()])
    for drawing in [drawing for drawings in figures.ONE.values() for drawing in drawings]:
        assert f'role="img" aria-label="{drawing.title}"><title>{drawing.title}</title>' in text


def test_colours_follow_light_and_dark(make: Callable[..., Run]) -> None:
    with styled():
        drawn = svg.inline(figures.ONE["What was learned"][0].draw([make()]), "accuracy", "Accuracy")
    assert not [colour for colour in DARK if colour in drawn], "every colour of the style is a variable"
    assert svg.variable("#0072b2") in drawn


def test_numbers_on_axes_are_not_cut() -> None:
    with styled():
        figure, axes = new(4, 3)
        axes.set_yticks([0.125])
        assert ">0.125<" in svg.inline(figure, "x", "x")


def test_headlines_are_those_of_the_tables(make: Callable[..., Run]) -> None:
    """Two rounds of three clients, 100 bytes each way; two ranks hand over 4000 bytes a round and take a second, in round 0 too."""
    found = {what: (value, remark) for what, value, remark in columns.headlines(make())}
    assert found["test accuracy"] == ("50.00 → 52.00\u00a0%", "best 52.00\u00a0% after round 2")
    assert found["federation traffic"][0] == "600 bytes up"
    assert found["sent by ranks"][0] == "12.0 kB"
    assert found["time in rounds"] == ("3.00 s", "1.00 s a round (median); start-up 1.50 s")
    assert found["waiting"] == ("12.5 %", "balance 100%")


def test_settings_that_differ(make: Callable[..., Run]) -> None:
    config = yaml.safe_load(CONFIG)
    other = yaml.safe_dump(config | {"seed": 8, "cohort": {"fraction": 0.5, "size": None}, "client": {"lr": 1e-4}})
    assert columns.differences([make("one"), make("two", config=other)]) == {
        "seed": ["7", "8"],
        "cohort.fraction": ["-", "0.5"],
        "cohort.size": ["3", "-"],
        "client.lr": ["-", "0.0001"],
    }
    assert columns.differences([make("three"), make("four")]) == {}


def test_runs_are_named_by_what_tells_them_apart(make: Callable[..., Run]) -> None:
    runs = [make("a/lr1"), make("a/lr2"), make("b/lr1")]
    assert columns.names(runs[:2]) == ["lr1", "lr2"]
    assert columns.names(runs) == ["a/lr1", "a/lr2", "b/lr1"]


def test_names_and_settings_cannot_break_the_page(make: Callable[..., Run]) -> None:
    bad = "<script>alert(1)</script> & $x_1"
    text = page.make([make(dataset=bad, split=Split(np.arange(2), np.ones((2, 2), int), (bad, "\u65e5\u672c")))], title=bad)
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_a_killed_run_without_a_trained_round(make: Callable[..., Run]) -> None:
    found = empty(page.make([make(rounds=0)]))
    assert set(found) == {"loss", "federation-bytes", "client-seconds", "client-sizes", "update-norms"}
    assert found["loss"] == "No round was trained."


def test_a_run_without_a_round(make: Callable[..., Run]) -> None:
    run = make(rounds=-1)
    assert set(empty(page.make([run]))) == {drawing.name for drawings in figures.ONE.values() for drawing in drawings} - {"labels"}
    assert set(empty(page.make([run, make("other", rounds=0)]))) == {"loss", "accuracy-by-bytes", "phases"}


def test_a_run_that_was_never_tested(make: Callable[..., Run]) -> None:
    run = make(accuracy=float("nan"))
    assert set(empty(page.make([run]))) == {"accuracy"}
    assert set(empty(page.make([run, make("other", accuracy=float("nan"))]))) == {
        "accuracy",
        "accuracy-by-bytes",
        "accuracy-by-seconds",
    }
    assert empty(page.make([run, make("tested")])) == {}


@pytest.mark.parametrize("schema", [1, 2, 3])
def test_files_of_old_versions(make: Callable[..., Run], tmp_path: Path, schema: int) -> None:
    """They knew neither /split nor some columns and attributes."""
    write_old(tmp_path / "run.h5", schema, [round_record(number, 0.5) for number in range(3)])
    old = open_run(tmp_path)
    found = empty(page.make([old]))
    assert list(found) == ["labels"]
    assert "older version" in found["labels"]
    assert "digits, iid over 40 clients" in columns.settings(old)["data"]
    assert "different data" not in page.make([old, make()])


def test_a_clock_that_stands_still(make: Callable[..., Run]) -> None:
    run, other = make(), make("other")
    for each in (run, other):
        for name in ("rounds", "ranks", "clients"):
            for column in each.tables[name].dtype.names or ():
                if column.endswith("_seconds"):
                    each.tables[name][column] = 0
    assert "nan" not in page.make([run])
    assert "nan" not in page.make([run, other])


def test_ranks_begin_a_round_together() -> None:
    """Rank 1 joins when the run goes on; round 1 takes as long as the slower of them."""
    ranks = rows(
        RANKS,
        {"round": 0, "rank": 0, "round_seconds": 5},
        {"round": 1, "rank": 0, "round_seconds": 2},
        {"round": 1, "rank": 1, "round_seconds": 3},
        {"round": 2, "rank": 1, "round_seconds": 1},
        {"round": 2, "rank": 0, "round_seconds": 1},
    )
    assert timing.starts(ranks).tolist() == [0, 5, 5, 8, 8]


def test_runs_on_different_data_are_told_apart(make: Callable[..., Run]) -> None:
    text = page.make([make("one"), make("two", dataset="cifar10")])
    assert "different data (digits, cifar10): their accuracies do not compare" in text


def test_updates_that_were_all_left_out(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run.h5", run_info())
    writer.add(round_record(0, 0.5))
    writer.add(round_record(1, 0.5, num_rejected=3))
    writer.close("failed")
    found = empty(page.make([open_run(tmp_path)]))
    assert set(found) == {"loss", "update-norms"}


def test_many_rows_make_a_small_page(tmp_path: Path) -> None:
    """400 rounds on 20 ranks: a map instead of a strip, and no figure of more than some thousand points."""
    made_up.write(tmp_path / "run.h5", 400, 60, 20)
    text = page.make([open_run(tmp_path)])
    assert empty(text) == {}
    assert len(text) < 600_000
    for name, drawn in re.findall(r'<figure class="\w+" id="([\w-]+)">(.*?)</figure>', text, re.S):
        points = sum(len(re.findall(r"[MLCQ] ", path)) for path in re.findall(r' d="([^"]*)"', drawn))
        assert points < 6000, name


def test_twenty_runs_have_lines_of_their_own(make: Callable[..., Run]) -> None:
    text = page.make([make(f"run{number}") for number in range(20)])
    swatches = re.findall(r'<svg width="34"[^>]*>(<line.*?/>)</svg>', text)
    assert len(set(swatches[:20])) == 20


def test_nothing_to_draw_is_told_with_a_sentence(make: Callable[..., Run]) -> None:
    with styled(), pytest.raises(NothingError, match=r"^[A-Z].*\.$"):
        figures.ONE["What was learned"][0].draw([make(accuracy=float("nan"))])


def test_a_name_of_characters_that_xml_lacks_is_drawn() -> None:
    with styled():
        figure, axes = new(4, 3)
        axes.set_title("bell \x07 & <b> #1b1f24")
        drawn = svg.inline(figure, "x", 'a "label"')
    assert ">bell \ufffd &amp; &lt;b&gt; #1b1f24<" in drawn, "what looks like a colour of ours stays, too"
    assert 'aria-label="a &quot;label&quot;"><title>a "label"</title>' in drawn


def test_what_a_template_would_take_for_its_own_is_text(make: Callable[..., Run]) -> None:
    text = page.make([make("{{ 7 * 7 }}", dataset="{% raw %}")])
    assert "<h1>{{ 7 * 7 }}</h1>" in text
    assert "{% raw %}" in text


def test_own_models_of_clients_where_they_were_tested(make: Callable[..., Run], tmp_path: Path) -> None:
    """A figure and a headline more, in runs with evaluate.personal only."""
    writer = Writer(tmp_path / "run.h5", run_info())
    for number in range(3):
        record = round_record(number, 0.5)
        if number:
            for name in views.PERSONAL:
                record.row[name] = 2 if name == "personal_worst_client" else 0.75
            record.row["personal_global_mean"] = 0.5
        writer.add(record)
    writer.close("finished")
    run = open_run(tmp_path)
    text = page.make([run])
    assert empty(text) == {}
    assert 'id="personal"' in text
    assert "75.00\u00a0% with own models (first decile 75.00\u00a0%, ninth 75.00\u00a0%), 50.00\u00a0% with the server" in text
    remarks = {what: (value, remark) for what, value, remark in columns.headlines(run)}
    assert remarks["personal accuracy"][0] == "75.00\u00a0%"
    assert remarks["personal accuracy"][1].startswith("worst 75.00\u00a0% (client 2)")
    compared = page._several([run, make("other")])
    number = compared["results"].index("personal accuracy\n(mean)")
    assert [line.result[number] for line in compared["lines"]] == ["75.00\u00a0%", "-"]
    assert all(len(line.result) == len(compared["results"]) for line in compared["lines"])
    assert "personal accuracy\n(mean)" not in page._several([make("third"), make("fourth")])["results"]


def test_no_figure_of_own_models_without_such_tests(make: Callable[..., Run]) -> None:
    run = make()
    assert 'id="personal"' not in page.make([run])
    assert "personal accuracy" not in {what for what, _, _ in columns.headlines(run)}
