"""Runs that no study made, read as a study."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import flora_hpc
from flora_hpc import configfile, yamltext
from flora_hpc.errors import UserError
from flora_hpc.records.hdf5file import Writer
from flora_hpc.records.sentences import leaves
from flora_hpc.studies import loose
from flora_hpc.studies.statistics import settings
from tests.conftest import ROOT
from tests.contracts.known_helpers import CONFIG, round_record, run_info
from tests.records.old_files import write_old

BASE: dict[str, Any] = yamltext.parse(CONFIG)
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A run of two rounds in a directory; keyword arguments are keys of its configuration, `__` for a dot."""

    def build(name: str, seed: int = 0, accuracy: float = 0.5, status: str = "finished", **keys: Any) -> Path:
        tree = BASE | {"seed": seed} | {key: value for key, value in keys.items() if "__" not in key}
        for key, value in keys.items():
            section, _, rest = key.partition("__")
            if rest:
                tree[section] = tree.get(section, {}) | {rest: value}
        folder = tmp_path / name
        folder.mkdir(parents=True)
        writer = Writer(folder / "run.h5", run_info(config=yamltext.dump(tree), seed=seed))
        for number in range(3):
            writer.add(round_record(number, accuracy + 0.01 * number))
        writer.close(status)
        return folder

    return build


def test_settings_are_what_differs_apart_from_the_seed(make: Make) -> None:
    paths = [make(f"{lr}-{seed}", seed, 0.5 + seed / 10, client__lr=lr) for lr in (0.1, 0.01) for seed in (3, 4)]
    study = loose.of_runs(paths)
    assert [point.keys for point in study.rows] == [{"client.lr": lr, "seed": seed} for lr in (0.01, 0.1) for seed in (3, 4)]
    assert [point.name for point in study.rows] == ["0.01-3", "0.01-4", "0.1-3", "0.1-4"]
    one, other = settings(study.rows)
    assert one.spread("final_test_accuracy").mean == other.spread("final_test_accuracy").mean == pytest.approx(0.87)
    assert [point.uplink_bytes for point in study.rows] == [600] * 4
    assert study.notes == ()


def test_numbers_are_sorted_by_size_and_words_stay_in_their_order(make: Make) -> None:
    clients = ("1000", "20", "3")  # as a shell sorts them
    paths = [make(f"{word}-{n}", client__x=word, client__n=int(n)) for word in ("b", "a") for n in clients]
    study = loose.of_runs(paths)
    assert [(point.keys["client.x"], point.keys["client.n"]) for point in study.rows] == [
        (word, n) for word in ("b", "a") for n in (3, 20, 1000)
    ]


def test_values_keep_their_kinds(make: Make) -> None:
    values: list[Any] = [None, True, 4, 0.5, "a, b", ["a", "b"], []]
    study = loose.of_runs([make(str(number), client__x=value) for number, value in enumerate(values)])
    assert [(type(point.keys["client.x"]), point.keys["client.x"]) for point in study.rows] == [(type(v), v) for v in values]


def test_what_cannot_change_results_is_no_setting(make: Make) -> None:
    changes: dict[str, Any] = {
        "comm__backend": "gloo",
        "checkpoint__every": 3,
        "features__store": "none",
        "cohort__assignment": "static",
        "records__clients": "none",
        "evaluate__per_client": True,
    }
    study = loose.of_runs([make("a"), make("b", 1, **changes, client__group_size=3, client__first_step="each")])
    assert study.keys == ()
    assert len(settings(study.rows)) == 1


def test_these_are_the_keys_that_the_essence_of_a_configuration_leaves_away() -> None:
    """But for `rounds`: more rounds are another setting."""
    given = {"comm.timeout_seconds": 5, "checkpoint.every": 3, "cohort.assignment": "static", "client.group_size": 3, "rounds": 7}
    given |= {"records.clients": "none"}
    config, _ = configfile.load_values({}, given | {"client.first_step": "each", "features.store": "none", "evaluate.every": 3})
    before, after = (leaves(each.model_dump(mode="json")) for each in (config, config.essence()))
    hidden = {key for key in before if before[key] != after[key]}
    assert hidden - {"rounds"} == {key for key in hidden if any(f"{key}.".startswith(f"{name}.") for name in loose.NOT_A_SETTING)}
    sections = {name.partition(".")[0] for name in loose.NOT_A_SETTING} - {"seed"}
    assert {key.partition(".")[0] for key in hidden} == sections | {"rounds"}


def test_options_that_follow_from_a_name_are_no_keys(make: Make) -> None:
    flora, fedca = {"name": "flora", "rank": 4, "alpha": 4.0}, {"name": "fedca", "length": 3}
    study = loose.of_runs([make("a", method=flora), make("b", method=fedca)])
    assert [point.setting for point in study.rows] == [{"method.name": "flora"}, {"method.name": "fedca"}]


def test_options_that_differ_between_equal_names_are_keys(make: Make) -> None:
    methods = [{"name": "flora", "rank": 4}, {"name": "flora", "rank": 8}, {"name": "fedca", "length": 3}]
    study = loose.of_runs([make(str(number), method=method) for number, method in enumerate(methods)])
    assert [point.setting for point in study.rows] == [
        {"method.name": "flora", "method.rank": 4},
        {"method.name": "flora", "method.rank": 8},
        {"method.name": "fedca"},
    ]


def test_a_part_that_only_one_run_names_is_a_key(make: Make) -> None:
    study = loose.of_runs([make("a", server=None), make("b", server={"name": "fedadam", "lr": 0.1})])
    assert [point.setting for point in study.rows] == [{}, {"server.name": "fedadam"}]
    assert len(settings(study.rows)) == 2


def test_defaults_that_an_old_file_lacks_are_no_differences(make: Make, tmp_path: Path) -> None:
    """The configuration of the old file has no section `evaluate`, and that of the new one has its defaults."""
    (tmp_path / "old").mkdir()
    write_old(tmp_path / "old/run.h5", 1, [round_record(number, 0.5) for number in range(3)])
    new = make("new", 8, evaluate={"every": 1, "overlap": False}, client={"epochs": 1, "lr": 5e-5})
    study = loose.of_runs([tmp_path / "old", new])
    assert [point.keys for point in study.rows] == [{"seed": 7}, {"seed": 8}]
    assert study.rows[0].final_test_accuracy == 0.5


def test_the_former_name_of_a_section_is_the_same_key(make: Make) -> None:
    study = loose.of_runs([make("a", aggregator={"name": "fedavg"}), make("b", algorithm={"name": "fedavgm"})])
    assert [point.setting for point in study.rows] == [{"algorithm.name": "fedavg"}, {"algorithm.name": "fedavgm"}]


def test_a_run_that_repeats_another_counts_once(make: Make) -> None:
    """Such as the same run on other numbers of ranks: a second copy is no second sample."""
    paths = [make("a", status="failed"), make("b"), make("c"), make("d", 0, 0.7), make("e", 1)]
    study = loose.of_runs(paths)
    assert [point.name for point in study.rows] == ["b", "e"]
    assert study.notes == (
        "a has the settings and the seed of b, and is left out",
        "c has the settings and the seed of b, and is left out",
        "d has the settings and the seed of b, and is left out; their test accuracies differ (0.5200 and 0.7200)",
    )


def test_a_run_that_is_given_twice_counts_once(make: Make) -> None:
    folder = make("a")
    study = loose.of_runs([folder, folder / "run.h5"])
    assert ([point.name for point in study.rows], study.notes) == (["a"], ("a run is given twice, and counts once",))


def test_runs_that_did_not_finish_are_no_results(make: Make) -> None:
    paths = [make(status, number, status=status) for number, status in enumerate(("finished", "stopped", "interrupted", "failed"))]
    study = loose.of_runs(paths)
    assert [point.status for point in study.rows] == ["finished", "stopped", "stopped", "failed"]
    assert settings(study.rows)[0].spread("final_test_accuracy").n == 1
    assert "1 finished, 2 stopped, 1 failed" in repr(study)


def test_a_point_leads_to_its_run(make: Make) -> None:
    paths = [make("x/a/run", 0, 0.3), make("x/b/run", 1, 0.6)]
    study = loose.of_runs(paths)
    assert [point.name for point in study.rows] == ["a/run", "b/run"]
    runs = [study.run(point) for point in study.rows]
    assert [run and run.tables["rounds"]["test_accuracy"][0] for run in runs] == [0.3, 0.6]
    assert study.path.name == "x"


def test_a_frame_of_all_rounds(make: Make) -> None:
    pytest.importorskip("pandas")
    study = loose.of_runs([make("a", 0, client__lr=0.1), make("b", 1, client__lr=0.2)])
    assert list(study.rounds.groupby("client.lr")["test_accuracy"].count()) == [3, 3]
    assert list(study.points["seed"]) == [0, 1]


def test_a_path_without_a_run_is_told(make: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: holds no run"):
        loose.of_runs([make("a"), tmp_path / "nowhere"])
    with pytest.raises(UserError, match="no run is named"):
        loose.of_runs([])


def test_real_runs(tmp_path: Path, squares: Path) -> None:
    """Two learning rates and two seeds; what the quickstart's file says decides nothing."""
    shared = flora_hpc.Shared()
    short: dict[str, Any] = {"rounds": 1, "partition__num_clients": 3, "client__epochs": 1}
    short |= {"data": {"name": "hdf5", "path": str(squares)}}
    grid = [(lr, seed) for lr in (1e-4, 1e-3) for seed in (0, 1)]
    runs = [
        flora_hpc.run(
            ROOT / "configs/quickstart.yaml", out=tmp_path / f"{lr}-{seed}", shared=shared, seed=seed, client__lr=lr, **short
        )
        for lr, seed in grid
    ]
    study = loose.of_runs([run.path for run in runs])
    assert [point.keys for point in study.rows] == [{"client.lr": lr, "seed": seed} for lr, seed in grid]
    for point, run in zip(study.rows, runs, strict=True):
        assert point.final_test_accuracy == run.tables["rounds"]["test_accuracy"][-1]
        assert point.uplink_bytes == run.tables["rounds"]["uplink_bytes"].sum() > 0
