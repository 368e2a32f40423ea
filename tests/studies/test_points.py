"""The points of a study: sweeps of the command line, the section `study`, names, mistakes."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flora_hpc.configtree import copied, read_all
from flora_hpc.errors import UserError
from flora_hpc.studies import grid, names, points
from flora_hpc.studies.points import Recipe
from tests.conftest import ROOT

TREE, ORIGIN = read_all(ROOT / "configs" / "quickstart.yaml")


def make(*sweeps: str, study: Any = None, **options: Any) -> Recipe:
    tree = copied(TREE) | ({"study": study} if study is not None else {})
    return points.make(tree, ORIGIN, "quickstart.yaml", sweeps, **options)


def keys(recipe: Recipe) -> list[dict[str, Any]]:
    return [item.point.keys for item in recipe.planned]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("client.lr=1e-4,1e-3", [1e-4, 1e-3]),
        ("client.lr = 1e-4, 1e-3", [1e-4, 1e-3]),
        ("seed=range(3,6)", [3, 4, 5]),
        ("seed=range(0,10,4)", [0, 4, 8]),
        ("method.targets=[a,b],[c]", [["a", "b"], ["c"]]),
        ("method={name: flora, rank: 2},{name: fedlc}", [{"name": "flora", "rank": 2}, {"name": "fedlc"}]),
        ("data.template='a, b',c", ["a, b", "c"]),
        ("cohort.size=null,3", [None, 3]),
        ("evaluate.per_client=true,false", [True, False]),
        ("data.name=digits", ["digits"]),
        ("data.template=it's,that", ["it's", "that"]),
    ],
)
def test_values_of_a_sweep(text: str, values: list[Any]) -> None:
    assert grid.sweep(text) == (text.partition("=")[0].strip(), values)


@pytest.mark.parametrize(
    ("text", "words"),
    [("client.lr", "write key=value,value"), ("=1,2", "write key=value,value"), ("a=", "write key=value,value"),
     ("a=1,,2", "empty value"), ("a=1,", "empty value"), ("a=range(3,3)", "has no value")],
)  # fmt: skip
def test_texts_that_are_no_sweep(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        grid.sweep(text)


@given(st.lists(st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=5))
def test_numbers_come_back_from_a_sweep(values: list[Any]) -> None:
    text = ",".join(str(value).lower() for value in values)
    assert grid.sweep(f"key={text}") == ("key", values)


def test_every_combination_is_a_point_and_seeds_change_fastest() -> None:
    recipe = make("client.lr=1e-4,1e-3", "partition.num_clients=5,10", seeds=2)
    assert keys(recipe) == [
        {"client.lr": lr, "partition.num_clients": n, "seed": seed} for lr in (1e-4, 1e-3) for n in (5, 10) for seed in (0, 1)
    ]
    last = recipe.planned[-1].config
    assert (last.client.lr, last.partition.num_clients, last.seed) == (1e-3, 10, 1)  # type: ignore[attr-defined]
    assert recipe.planned[-1].point.name == "lr=0.001,num_clients=10,seed=1"


def test_seeds_begin_at_that_of_the_configuration() -> None:
    assert [point["seed"] for point in keys(make(seeds=3, overrides=["seed=7"]))] == [7, 8, 9]
    assert [point["seed"] for point in keys(make("seed=5,3"))] == [5, 3]


def test_grid_zip_points_and_seeds_of_a_section() -> None:
    section = {
        "grid": {"client.lr": [1e-4, 1e-3]},
        "zip": {"partition.num_clients": [5, 10], "client.batch_size": [64, 32]},
        "points": [{"algorithm": "fedavg"}, {"algorithm": "fedprox", "algorithm.mu": 0.1}],
        "seeds": [4, 9],
    }
    recipe = make(study=section)
    assert len(recipe.planned) == 2 * 2 * 2 * 2
    assert {(p["partition.num_clients"], p["client.batch_size"]) for p in keys(recipe)} == {(5, 64), (10, 32)}
    assert {p.get("algorithm.mu") for p in keys(recipe) if p["algorithm"] == "fedprox"} == {0.1}
    assert {item.config.algorithm.name for item in recipe.planned} == {"fedavg", "fedprox"}


def test_the_grid_of_a_file_replaces_that_of_its_base(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("rounds: 3\nstudy: {grid: {client.lr: [1, 2]}, seeds: 4}\n")
    (tmp_path / "file.yaml").write_text("base: base.yaml\nstudy: {zip: {rounds: [4, 5], partition.num_clients: [2, 3]}}\n")
    tree, origin = read_all(tmp_path / "file.yaml")
    assert keys(points.make(tree, origin, "file.yaml")) == [
        {"rounds": 4, "partition.num_clients": 2},
        {"rounds": 5, "partition.num_clients": 3},
    ]
    tree, origin = read_all(tmp_path / "base.yaml")
    assert len(points.make(tree, origin, "base.yaml").planned) == 8


def test_sweeps_replace_values_of_the_same_key_in_a_section() -> None:
    recipe = make("client.lr=1e-2", seeds=1, study={"grid": {"client.lr": [1e-4, 1e-3], "rounds": [1, 2]}, "seeds": 5})
    assert keys(recipe) == [{"client.lr": 1e-2, "rounds": n, "seed": 0} for n in (1, 2)]


def test_ranks_of_a_point_are_no_key_of_its_run() -> None:
    recipe = make(study={"zip": {"partition.num_clients": [5, 10], "ranks_per_run": [1, 4]}})
    assert [(item.point.keys, item.num_ranks) for item in recipe.planned] == [
        ({"partition.num_clients": 5}, 1),
        ({"partition.num_clients": 10}, 4),
    ]


def test_a_configuration_alone_is_one_point() -> None:
    (item,) = make().planned
    assert (item.point.name, item.point.keys) == ("base", {})


@pytest.mark.parametrize(
    ("sweeps", "options", "words"),
    [
        (["client.lrr=1,2"], {}, "client.lrr: unknown key; did you mean client.lr?"),
        (["client.lr=-1,1"], {}, "client.lr: must be greater than 0"),
        (["client.lr=1,1.0"], {}, "lr=1 and lr=1.0 are the same run"),
        (["method.name=flora,flora"], {}, "are the same run"),
        (["client.lr=1", "client.lr=2"], {}, "client.lr=: is given twice"),
        (["client.lr=1,2"], {"overrides": ["client.lr=3"]}, "is also a key of the study's grid"),
        (["comm.backend=mpi,gloo"], {}, "all runs of a study share the ranks"),
        (["seed=1,2"], {"seeds": 3}, "leave one of the two out"),
        (["seed=1,1"], {}, "are the same run"),
        (["seed=-1,2"], {}, "is no seed"),
        (["seed=range(0,200000)"], {}, "are more than 100,000"),
        (["client.lr=1"], {"study": {"zip": {"client.lr": [1, 2]}}}, "is in study.zip or study.points"),
        ([], {"study": {"zip": {"client.lr": [1, 2], "rounds": [1]}}}, "must be equally long"),
        ([], {"study": {"grid": {"client.lr": []}}}, "has no value"),
        ([], {"study": {"grid": {"client.lr": [1]}, "points": [{"client.lr": 2}]}}, "is in two of grid, zip and points"),
        ([], {"study": {"gird": {}}}, "study.gird: unknown key; did you mean study.grid?"),
        ([], {"study": [1]}, "must hold keys"),
        ([], {"study": {"points": [{"seed": 3}], "seeds": 2}}, "leave one of the two out"),
        ([], {"study": {"grid": {"ranks_per_run": ["two"]}}}, "must be a whole number of ranks"),
    ],
)  # fmt: skip
def test_a_mistake_in_any_point_refuses_the_study(sweeps: list[str], options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        make(*sweeps, **options)
    assert words in str(error.value)


def test_names_are_short_unique_and_safe() -> None:
    assert names.name_of({"method.name": "flora", "client.lr": 0.1, "seed": 3}, ["method.name", "client.lr"]) == (
        "method=flora,lr=0.1,seed=3"
    )
    one = names.name_of({"model.name": "x", "data.root": "/a/b c"}, ["model.name", "data.root"])
    other = names.name_of({"model.name": "x", "data.root": "/a/b-c"}, ["model.name", "data.root"])
    assert one.startswith("model=x,root=b-c,")
    files = [names.name_of({"data.path": path}, ["data.path"]) for path in ("/a/t.h5", "/b/t.h5")]
    assert files[0] != files[1]
    alike = ["true", True, "1", 1, "null", None, 1.0, "x,c=2", "[1]", [1]]
    assert len({names.name_of({"b": value}, ["b"]) for value in alike}) == len(alike)
    assert one != other
    assert names.short("client.lr", ["client.lr", "algorithm.lr"]) == "client.lr"
    assert len(names.name_of({"data.template": "x" * 500}, ["data.template"])) < 200


def test_a_stored_study_has_the_same_points_from_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    tree = {"data": {"name": "digits"}, "features": {"store": "images"}, "rounds": 3}
    recipe = points.make(
        tree, {}, "a.yaml", ["partition.num_clients=2,3", "features.store=x,images"], 2, ["client.lr=1e-3"], ["p.py"]
    )
    (tmp_path / "study.yaml").write_text(recipe.to_yaml())
    monkeypatch.chdir("/")
    again = points.read(tmp_path)
    assert again.planned == recipe.planned
    assert again.plugins == ("p.py",)
    assert {item.config.features.store for item in again.planned} == {str(tmp_path / "x"), str(tmp_path / "images")}


@pytest.mark.parametrize("text", ["", "a: [", "config: 1\nstudy: {}", "study: {}"])
def test_a_damaged_study(text: str, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(UserError, match="cannot be read"):
        points.read(tmp_path)


def test_a_larger_grid_extends_a_study_and_a_smaller_or_other_one_does_not() -> None:
    before, larger = make("client.lr=1,2"), make("client.lr=1,2,3")
    points.refuse_lost(before, larger, Path("x"))
    with pytest.raises(UserError, match=r"has the point lr=3, which this grid lacks"):
        points.refuse_lost(larger, before, Path("x"))
    with pytest.raises(UserError, match=r"another configuration: client.batch_size was 32 and is 64"):
        points.refuse_lost(before, make("client.lr=1,2", overrides=["client.batch_size=64"]), Path("x"))
    points.refuse_lost(before, make("client.lr=1,2", overrides=["rounds=50"]), Path("x"))


def test_a_study_of_one_point_is_told() -> None:
    assert make().notes == ("no key varies, so that the study has one point; add values such as client.lr=1e-4,1e-3, or --seeds N",)
    assert make(seeds=2).notes == make("client.lr=0.1").notes == ()
