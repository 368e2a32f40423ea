"""Personal evaluation: clients' own models on their own mixes of classes."""

import re
import subprocess
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flora_hpc import building, configfile, evaluate, experiment, personal
from flora_hpc.algorithms._algorithm import Algorithm, Local
from flora_hpc.clip.load import load
from flora_hpc.comm.devices import Room
from flora_hpc.config import EvaluateConfig
from flora_hpc.data.holdings import Partition
from flora_hpc.data.inputs import Features
from flora_hpc.errors import UserError
from flora_hpc.personal import Personal
from flora_hpc.records import hdf5file, views
from flora_hpc.records.known import RankReport, merge
from flora_hpc.records.schema import CLIENTS, DECILES, RANKS, ROUNDS, Rows
from flora_hpc.records.summary import accuracy_lines
from flora_hpc.setup import Setup
from tests.conftest import ROOT, refusal
from tests.same_runs import adapter
from tests.test_round import algorithm, four_clients

Invoke = Callable[..., str]
RIGHT, WRONG, ALWAYS_0 = [1.0, 0, 0, 0, 1, 0], [0.0, 1, 0, 1, 0, 0], [1.0, 1, 1, 0, 0, 0]  # (2, 3) weights on one-hot features


def by_hand(parts: Algorithm) -> Setup:
    """Clients with 3:1 and 0:1 of two classes, with 1:1 of them, and with a third class alone, of which there is no test image.

    There are two test images of class 0 and four of class 1; the features of an image are its class.
    """
    labels = torch.tensor([0, 0, 0, 1, 1, 0, 1, 2, 2, 0, 0, 1, 1, 1, 1])
    setup, _ = four_clients()
    return replace(
        setup,
        federation=algorithm(parts),
        evaluate=EvaluateConfig(personal=True),
        holdings=Partition(np.arange(9), np.array([0, 4, 5, 7, 9])),
        labels=labels,
        test=torch.arange(9, 15),
        inputs=Features(torch.eye(3)[labels], block=4),
        num_classes=3,
    )


def measured(setup: Setup, memory: dict[str, torch.Tensor], number: int = 1) -> Rows:
    """Rows of the four clients; the server's adapter gets one image of class 0 and three of class 1 right."""
    rows = np.zeros(4, CLIENTS)
    rows["client"] = np.arange(4)
    Personal(setup, number, torch.tensor(ALWAYS_0), np.array([1, 3])).test(rows, memory)
    return rows


DITTO = Algorithm(local=Local(personal=lambda gradient, step: gradient))
MODELS = torch.tensor([RIGHT, WRONG, ALWAYS_0, RIGHT])


def test_by_hand() -> None:
    """3/4 * 1/2 + 1/4 * 3/4 = 0.5625, and so on; a client without a tested class has NaN and does not count."""
    rows = measured(by_hand(DITTO), {"personal": MODELS})
    np.testing.assert_array_equal(rows["global_accuracy"], np.float32([0.5625, 0.75, 0.625, np.nan]))
    np.testing.assert_array_equal(rows["personal_accuracy"], np.float32([1, 0, 0.5, np.nan]))
    row = merge(1, [RankReport(np.zeros(1, RANKS), rows[::-1], evaluate.RightAnswers(np.array([1, 3])), 0, np.zeros(0))]).row[0]
    assert row["personal_accuracy_mean"] == 0.5
    assert row["personal_accuracy_std"] == pytest.approx((1 / 6) ** 0.5)
    assert (row["personal_accuracy_min"], row["personal_worst_client"]) == (0, 1)
    assert [row[name] for name in DECILES] == pytest.approx([number / 10 for number in range(1, 10)])
    assert row["personal_global_mean"] == pytest.approx((0.5625 + 0.75 + 0.625) / 3)


def test_a_private_part_takes_its_place_in_the_servers_adapter() -> None:
    """The adapter's weights of class 0 are all 1; those of class 1 are each client's own."""
    setup = by_hand(Algorithm())
    roles = replace(setup.federation.roles[0], own=replace(setup.federation.roles[0].own, slices=(slice(3, 6),), total=6))
    setup = replace(setup, federation=replace(setup.federation, roles=(roles,)))
    weights = torch.tensor([[0.0, 2, 0], [0, 0, 0], [2, 2, 2], [0, 2, 0]])
    assert measured(setup, {"private": weights})["personal_accuracy"].tolist()[:3] == [1, 0, 0.5]


def test_without_own_models_personal_accuracy_is_global_accuracy() -> None:
    rows = measured(by_hand(Algorithm()), {})
    np.testing.assert_array_equal(rows["personal_accuracy"], rows["global_accuracy"])


def test_scores_that_are_not_finite_are_wrong() -> None:
    models = torch.tensor([[float("nan"), *RIGHT[1:]]] * 4)
    assert measured(by_hand(DITTO), {"personal": models})["personal_accuracy"].tolist()[:3] == [0, 0, 0]


def test_clients_are_tested_in_groups_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    setup, alone = by_hand(DITTO), measured(by_hand(DITTO), {"personal": MODELS})
    monkeypatch.setattr(personal, "MOST_NUMBERS", 1)
    assert personal.group_size(setup) == 1
    np.testing.assert_array_equal(measured(setup, {"personal": MODELS})["personal_accuracy"], alone["personal_accuracy"])


def test_fine_tuning_after_the_last_round_teaches_each_client_its_classes() -> None:
    """From an adapter that is never right about class 1; other rounds are not fine-tuned, and the adapter stays as it was."""
    setup = replace(by_hand(Algorithm()), evaluate=EvaluateConfig(personal=True, fine_tune_epochs=40))
    client = setup.client.model_copy(update={"lr": 0.5, "weight_decay": 0.0, "optimizer": "sgd"})
    setup = replace(setup, client=client)
    before = measured(setup, {}, setup.rounds - 1)
    np.testing.assert_array_equal(before["personal_accuracy"], before["global_accuracy"])
    tests, rows = Personal(setup, setup.rounds, torch.tensor(ALWAYS_0), np.array([1, 3])), np.zeros(1, CLIENTS)
    tests.test(rows, {})
    assert rows["personal_accuracy"].tolist() == [1]
    assert tests.adapter.tolist() == ALWAYS_0


# --- bits


@pytest.mark.parametrize(
    "method",
    [
        "{name: flora}",
        "{name: flora, targets: [text.q_proj, text.mlp]}",
        "{name: feddylora}",
        "{name: fedprompt}",
        "{name: fedlc}",
        "{name: fedca}",
        "{name: fedaa}",
    ],
)
def test_a_clients_right_answers_do_not_depend_on_who_is_tested_beside_it(method: str) -> None:
    data = ["data={name: digits}", "partition={name: quantity, num_clients: 5, examples_per_client: 9}", f"method={method}"]
    config, _ = configfile.load(ROOT / "configs" / "quickstart.yaml", data)
    dataset, clip = experiment.dataset(config), load(config.model, 0, torch.device("cpu"))
    setup = building.make_setup(config, dataset, deepcopy(clip), torch.device("cpu"), Room(2**40, gpu=False))
    features = torch.randn(len(dataset.images), 128, generator=torch.Generator().manual_seed(0))
    setup = replace(setup, inputs=Features(features, block=100))
    start = setup.method.pack(setup.method.init(np.random.default_rng(0)))
    models = start + torch.randn(5, len(start), generator=torch.Generator().manual_seed(1)) * 0.05
    alone = np.concatenate([personal.count_correct(setup, models[i : i + 1]) for i in range(5)])
    assert len({tuple(row) for row in alone.tolist()}) > 1
    for some in ([0, 1, 2, 3, 4], [4, 2], [3, 1, 0]):
        np.testing.assert_array_equal(personal.count_correct(setup, models[some]), alone[some])
    for i in range(2):
        counts = evaluate.count_correct(setup.method, models[i], setup.inputs, setup.labels, setup.test).test
        assert abs(counts - alone[i][: len(counts)]).sum() <= 2, "up to ties"


# --- runs


@pytest.fixture
def command(squares: Path) -> Callable[..., list[str]]:
    """A run of five clients with two images each, which are tested on their own."""

    def words(out: Path, *settings: str) -> list[str]:
        data = [f"data={{name: hdf5, path: {squares}}}", "partition={name: iid, num_clients: 5}", "client.lr=0.05", "rounds=2"]
        every = (*data, "evaluate.personal=true", *settings)
        return [
            "run",
            str(ROOT / "configs" / "quickstart.yaml"),
            *(word for each in every for word in ("-s", each)),
            "--out",
            str(out),
        ]

    return words


Command = Callable[..., list[str]]
OF_ROUNDS = (*views.PERSONAL, "message_norm", "message_bytes", "test_accuracy")
OF_CLIENTS = ("client", "global_accuracy", "personal_accuracy", "memory_norm")


def assert_same_numbers(out: Path, other: Path) -> None:
    (_, tables), (_, others) = hdf5file.read(out), hdf5file.read(other)
    for table, names in (("rounds", OF_ROUNDS), ("clients", OF_CLIENTS)):
        for name in names:
            np.testing.assert_array_equal(tables[table][name], others[table][name], err_msg=name)
    assert adapter(out) == adapter(other)


@pytest.mark.mpi
@pytest.mark.parametrize(
    "settings",
    [
        ["algorithm=fedsa_lora", "evaluate.fine_tune_epochs=2"],
        ["algorithm=ditto", "cohort.size=4"],
        pytest.param(["algorithm=scaffold"], marks=pytest.mark.long),
    ],
    ids=["fedsa_lora", "ditto", "scaffold"],
)
def test_any_number_of_ranks_gives_the_same_numbers(
    settings: list[str],
    command: Command,
    tmp_path: Path,
    invoke: Invoke,
    flora: Callable[..., subprocess.CompletedProcess[str]],
    mpiexec: list[str],
) -> None:
    invoke(*command(tmp_path / "alone", *settings))
    _, tables = hdf5file.read(tmp_path / "alone")
    if "scaffold" not in settings[0]:
        assert np.isfinite(tables["clients"]["personal_accuracy"]).all()
        assert (tables["clients"]["personal_accuracy"] != tables["clients"]["global_accuracy"]).any()
    for name, more in (("balanced", []), ("dynamic", ["cohort.assignment=dynamic", "client.group_size=1"])):
        ended = flora(*command(tmp_path / name, *settings, *more), under=[*mpiexec, "-n", "3"])
        assert ended.returncode == 0, ended.stderr
        assert_same_numbers(tmp_path / name, tmp_path / "alone")


def test_fine_tuning_changes_no_adapter(command: Command, tmp_path: Path, invoke: Invoke) -> None:
    invoke(*command(tmp_path / "plain"))
    invoke(*command(tmp_path / "tuned", "evaluate.fine_tune_epochs=5"))
    assert adapter(tmp_path / "plain") == adapter(tmp_path / "tuned")
    (_, plain), (_, tuned) = hdf5file.read(tmp_path / "plain"), hdf5file.read(tmp_path / "tuned")
    for name in ("test_accuracy", "personal_global_mean"):
        np.testing.assert_array_equal(plain["rounds"][name], tuned["rounds"][name])
    assert plain["rounds"]["personal_accuracy_mean"][1] == tuned["rounds"]["personal_accuracy_mean"][1]
    assert plain["rounds"]["personal_accuracy_mean"][2] < tuned["rounds"]["personal_accuracy_mean"][2]


@pytest.mark.parametrize("fine_tune_epochs", [0, 2])
def test_a_run_that_is_given_more_rounds_has_the_tests_of_a_run_that_had_them(
    fine_tune_epochs: int, command: Command, tmp_path: Path, invoke: Invoke
) -> None:
    """But for the round that was the last: with fine-tuning its personal accuracy is cleared, since it was of fine-tuned models."""
    settings = ["algorithm=ditto", "evaluate.every=2", f"evaluate.fine_tune_epochs={fine_tune_epochs}"]
    invoke(*command(tmp_path / "out", *settings, "rounds=3"))
    invoke(*command(tmp_path / "out", *settings, "rounds=5"), "--resume")
    invoke(*command(tmp_path / "unbroken", *settings, "rounds=5"))
    assert_same_numbers(tmp_path / "out", tmp_path / "unbroken")
    _, tables = hdf5file.read(tmp_path / "out")
    assert np.flatnonzero(tables["rounds"]["personal_worst_client"] >= 0).tolist() == [2, 4, 5]
    assert np.unique(tables["clients"]["round"][np.isfinite(tables["clients"]["personal_accuracy"])]).tolist() == [2, 4, 5]


def test_the_last_rounds_fine_tuned_accuracy_is_not_taken_for_that_of_a_longer_run(
    command: Command, tmp_path: Path, invoke: Invoke
) -> None:
    settings = ["algorithm=ditto", "evaluate.fine_tune_epochs=2"]
    invoke(*command(tmp_path / "out", *settings, "rounds=1"))
    invoke(*command(tmp_path / "out", *settings, "rounds=2"), "--resume")
    _, tables = hdf5file.read(tmp_path / "out")
    assert np.isnan(tables["rounds"]["personal_accuracy_mean"]).tolist() == [True, True, False]
    assert tables["rounds"]["personal_worst_client"][1] == -1
    assert np.isfinite(tables["rounds"]["test_accuracy"]).all()


def test_what_server_and_clients_remember_and_send(command: Command, tmp_path: Path, invoke: Invoke) -> None:
    """Scaffold's server sends its control variate, zero at first, to each of five clients; each client remembers its own."""
    invoke(*command(tmp_path / "out", "algorithm=scaffold"))
    facts, tables = hdf5file.read(tmp_path / "out")
    assert (facts["algorithm"], facts["num_private_params"]) == ("scaffold", 0)
    assert tables["rounds"]["message_bytes"].tolist() == [0, 5 * 4 * facts["num_params"], 5 * 4 * facts["num_params"]]
    norms = tables["rounds"]["message_norm"]
    assert np.isnan(norms[0])
    assert norms[1] == 0 < norms[2]
    assert (tables["clients"]["memory_norm"] > 0).all()


def test_a_run_with_private_parts_says_how_many(command: Command, tmp_path: Path, invoke: Invoke) -> None:
    invoke(*command(tmp_path / "out", "algorithm=fedsa_lora", "rounds=1"))
    facts, tables = hdf5file.read(tmp_path / "out")
    assert 0 < facts["num_private_params"] < facts["num_params"]
    assert np.isnan(tables["clients"]["memory_norm"]).all()
    assert np.isnan(tables["rounds"]["message_norm"]).all()
    shown = invoke("show", tmp_path / "out")
    assert "personal accuracy" in shown
    assert "server's adapter, same clients" in shown
    assert "fedsa_lora" in shown.partition("algorithm")[2].splitlines()[0]
    assert "global accuracy" in invoke("show", tmp_path / "out", "--clients")
    rounds = invoke("show", tmp_path / "out", "--rounds")
    assert re.findall(r"personal decile (\d)", rounds) == ["1", "5", "9"]
    assert "personal_decile_2" in invoke("show", tmp_path / "out", "--rounds", "--csv")


# --- words


def test_lines_only_where_there_are_such_numbers() -> None:
    rows = np.zeros(2, ROUNDS)
    rows["personal_accuracy_mean"] = np.nan
    assert "personal accuracy" not in accuracy_lines(rows)
    assert "personal" not in views.line(rows[0], 2)
    rows["personal_accuracy_mean"][1], rows["personal_global_mean"][1], rows["personal_decile_1"][1] = 0.75, 0.5, 0.25
    assert accuracy_lines(rows)["personal accuracy"].startswith("mean 0.7500")
    assert accuracy_lines(rows)["personal accuracy"].endswith("first decile 0.2500")
    assert accuracy_lines(rows)["server's adapter, same clients"] == "mean 0.5000"
    assert "personal 0.7500" in views.line(rows[1], 2)


# --- what is refused


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            ["evaluate.personal=false", "evaluate.fine_tune_epochs=2"],
            "fine_tune_epochs: 2 epochs train models that only evaluate.per",
        ),
        (
            ["evaluate.overlap=true"],
            "evaluate.personal: tests at the end of a round, and evaluate.overlap in the next one; leave one",
        ),
        (["evaluate.fine_tune_epochs=-1"], "evaluate.fine_tune_epochs"),
    ],
    ids=["fine_tune_epochs", "overlap", "negative"],
)
def test_options_that_do_not_fit(settings: list[str], sentence: str, command: Command, tmp_path: Path) -> None:
    assert sentence in refusal(*command(tmp_path / "out", *settings))
    assert not (tmp_path / "out").exists()


def test_pairs_have_no_classes(tmp_path: Path, command: Command) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    lines = ["image,caption"]
    for i in range(20):
        Image.new("RGB", (8, 8), (i * 10, 0, 0)).save(folder / f"{i}.png")
        lines.append(f"images/{i}.png,shade {i}")
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
    settings = [f"data={{name: pairs, path: {tmp_path / 'pairs.csv'}}}", "partition={name: iid, num_clients: 2}"]
    said = refusal(*command(tmp_path / "out", *settings, "client.loss=contrastive"))
    assert "evaluate.personal: tests clients on their mix of classes, but pairs have none; leave it out" in said


def test_clients_of_which_nothing_can_be_measured() -> None:
    setup = by_hand(DITTO)
    holders = Partition(np.array([7, 8]), np.array([0, 1, 2]))  # of the class without test images
    with pytest.raises(
        UserError, match=r"evaluate\.personal: no client holds a class of which there are test images; leave it out"
    ):
        evaluate.mixes(holders, setup.labels.numpy(), setup.test.numpy(), 3, "evaluate.personal")


def test_a_warning_where_personal_and_global_accuracy_are_equal(command: Command, tmp_path: Path, invoke: Invoke) -> None:
    sentence = "evaluate.personal: with fedavg no client has a model of its own, so personal and global accuracy are equal"
    for name, settings, is_warned in (("fedavg", [], True), ("ditto", ["algorithm=ditto"], False)):
        invoke(*command(tmp_path / name, *settings, "rounds=1"))
        assert (sentence in hdf5file.read(tmp_path / name)[0]["warnings"]) is is_warned
