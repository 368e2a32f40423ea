"""Attacks: what attackers send, against numbers from elsewhere, who they are, and what a run does with them.

The numbers of IPM and ALIE are those of ByzFL 0.0.11 on six honest updates; they were recorded, since it is no dependency.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import flora_hpc
from flora_hpc import attackers, plugins, trainer
from flora_hpc.attackers import Attackers
from flora_hpc.attacks._attack import Attack
from flora_hpc.attacks.alie import hidden
from flora_hpc.data import triggered
from flora_hpc.data.inputs import Features
from flora_hpc.errors import UserError
from flora_hpc.records import hdf5file
from tests.conftest import ROOT
from tests.test_robust_rules import HONEST, close, double
from tests.test_round import four_clients

QUICKSTART = ROOT / "configs" / "quickstart.yaml"
Invoke = Callable[..., str]


def build(name: str, **options: Any) -> Attack:
    module = plugins.member("attacks", name)
    result: Attack = module.build(module.Options(name=name, **options))
    return result


def drawn(name: str, seed: int = 0, num_registered: int = 10, **options: Any) -> Attackers:
    return attackers.draw(plugins.member("attacks", name).Options(name=name, **options), seed, num_registered)


# --- what attackers send


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("ipm", {"scale": 2.0}, (-0.21, -0.40666666667, 0.21333333333)),
        ("alie", {"deviations": 1.5}, (0.1330624304, 0.2504502093, -0.0742629632)),
    ],
)
def test_attacks_from_the_updates_of_six_honest_clients(name: str, options: dict[str, float], expected: tuple[float, ...]) -> None:
    against = build(name, **options).against
    assert against is not None
    close(against(double(HONEST), 1), expected)


@pytest.mark.parametrize(("num_honest", "num_attackers", "z"), [(26, 24, 1.4260768723), (16, 4, 0.1573106846)])
def test_the_deviations_that_a_majority_hides(num_honest: int, num_attackers: int, z: float) -> None:
    assert hidden(num_honest, num_attackers) == pytest.approx(z, abs=1e-9)


@pytest.mark.parametrize("num_clients", range(2, 12))
def test_alie_is_finite_in_every_round(num_clients: int) -> None:
    against = build("alie").against
    assert against is not None
    for num_attackers in range(1, num_clients):
        assert torch.isfinite(against(double(HONEST * 2)[: num_clients - num_attackers], num_attackers)).all()


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [("sign_flip", {"scale": 2.0}, [-2.0, 4.0, 0.0]), ("scaled", {}, [10.0, -20.0, 0.0]), ("zero", {}, [0.0, 0.0, 0.0])],
)
def test_attacks_from_the_attackers_own_update(name: str, options: dict[str, float], expected: list[float]) -> None:
    alone = build(name, **options).alone
    assert alone is not None
    assert alone(torch.tensor([1.0, -2.0, 0.0]), np.random.default_rng(0)).tolist() == expected


def test_gaussian_noise_has_the_size_of_the_update_times_a_factor() -> None:
    alone, update = build("gaussian", scale=3.0).alone, torch.full((20_000,), -0.5)
    assert alone is not None
    noise = alone(update, np.random.default_rng(0))
    assert float(noise.std()) == pytest.approx(1.5, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0, abs=0.03)


def test_noise_depends_on_seed_round_and_client_alone() -> None:
    group, updates = drawn("gaussian", fraction=0.9), torch.ones(10, 4)
    clients = np.flatnonzero(group.mask)
    of_all = group.alone(3, clients, updates[: len(clients)])
    assert torch.equal(group.alone(3, clients[4:5], updates[:1]), of_all[4:5])
    assert len({tuple(row) for row in of_all.tolist()}) == len(clients)
    assert not torch.equal(group.alone(4, clients, updates[: len(clients)]), of_all)


def test_honest_clients_send_what_they_have_trained() -> None:
    group, updates = drawn("sign_flip"), torch.arange(30.0).view(10, 3)
    sent = group.alone(1, np.arange(10), updates)
    assert torch.equal(sent, torch.where(torch.from_numpy(group.mask)[:, None], -updates, updates))
    assert updates.tolist() == torch.arange(30.0).view(10, 3).tolist()


def test_labels_are_flipped_for_attackers_only() -> None:
    group = drawn("label_flip", fraction=0.5)
    labels = group.labels(np.arange(10), 4)
    assert labels is not None
    assert labels.tolist() == [[3, 2, 1, 0] if attacks else [0, 1, 2, 3] for attacks in group.mask]
    assert group.labels(np.flatnonzero(~group.mask), 4) is None


def test_a_trigger_is_a_white_square_where_the_model_sees_it() -> None:
    """Of 10 x 8 pixels, where 1 is white: a quarter of the shorter side is two pixels."""

    def preprocess(image: Any) -> torch.Tensor:
        return torch.full((3, 10, 8), float(np.asarray(image)[0, 0, 0]) / 255)

    image = Image.new("RGB", (4, 4), "black")
    for place, (top, left) in {"top_left": (0, 0), "bottom_right": (8, 6), "bottom_left": (8, 0), "center": (4, 3)}.items():
        expected = torch.zeros(3, 10, 8)
        expected[:, top : top + 2, left : left + 2] = 1
        assert torch.equal(triggered.Stamp(preprocess, 0.25, place)(image), expected), place


def test_triggered_images_follow_the_clean_ones() -> None:
    clean, marked = Features(torch.arange(4.0)[:, None]), Features(torch.arange(4.0)[:, None] + 100)
    inputs = triggered.WithTriggered(clean, marked, 4)
    assert inputs(torch.tensor([[0, 4, 7, 3]])).tolist() == [[[0.0], [100.0], [103.0], [3.0]]]
    labels, rows = triggered.label_rows(np.array([0, 2, 1, 2]), 2, np.array([0, 1, 2]))
    assert labels.tolist() == [0, 2, 1, 2, 2, 2, 2, 2]
    assert rows.tolist() == [4, 6], "a test image of the target says nothing"


def test_attackers_trigger_a_share_of_their_images_and_the_same_ones_in_each_round() -> None:
    group = drawn("backdoor", fraction=0.5, poisoned=0.25)
    examples = np.arange(4000).reshape(2, 10, 200)
    result = group.poisoned(np.arange(10), examples, 4000)
    assert (result[:, ~group.mask] == examples[:, ~group.mask]).all()
    changed = result[:, group.mask] != examples[:, group.mask]
    assert 0.2 < changed.mean() < 0.3
    assert (result[:, group.mask] - examples[:, group.mask] == 4000 * changed).all()
    assert (group.poisoned(np.arange(10)[::-1].copy(), examples[:, ::-1].copy(), 4000)[:, ::-1] == result).all()


# --- who attacks


def test_who_attacks_depends_on_the_seed_and_is_a_share_of_all_clients() -> None:
    assert drawn("zero", num_registered=1000, fraction=0.29).mask.sum() == 290
    assert drawn("zero", seed=1).mask.tolist() == drawn("scaled", seed=1).mask.tolist()
    assert len({tuple(drawn("zero", seed=seed).mask.tolist()) for seed in range(20)}) > 10


def test_a_share_that_is_nobody_is_refused() -> None:
    with pytest.raises(UserError, match=r"attack.fraction: 0.05 of 10 registered clients is less than one attacker; raise it"):
        drawn("zero", fraction=0.05)


# --- in runs


def test_a_run_names_its_attackers(tmp_path: Path, invoke: Invoke) -> None:
    options = ["-s", "attack={name: scaled, fraction: 0.3}", "-s", "algorithm=median", "-s", "rounds=2"]
    invoke("run", QUICKSTART, *options, "--out", tmp_path / "run")
    attributes, tables = hdf5file.read(tmp_path / "run")
    assert attributes["algorithm"] == "median, attack scaled by 3 of 10 clients"
    assert tables["rounds"]["num_attackers"].tolist() == [0, 3, 3]
    expected = drawn("scaled", seed=int(attributes["seed"]), fraction=0.3).mask
    for number in (1, 2):
        clients = tables["clients"][tables["clients"]["round"] == number]
        assert clients["attacks"].astype(bool).tolist() == expected[clients["client"]].tolist()
    assert "attack scaled by 3 of 10 clients" in invoke("show", tmp_path / "run")
    page = invoke("report", tmp_path / "run", "--out", tmp_path / "page.html")
    assert "attack: scaled" in (tmp_path / "page.html").read_text(), page


def test_the_zeros_of_attackers_count_in_a_mean(tmp_path: Path) -> None:
    """Nine of ten send zeros: the adapter moves by a tenth of one update."""
    runs = {}
    for fraction in (0.9, None):
        attack = None if fraction is None else {"name": "zero", "fraction": fraction}
        out = tmp_path / str(fraction)
        flora_hpc.run(QUICKSTART, out=out, rounds=1, algorithm={"name": "trimmed_mean", "fraction": 0}, attack=attack)
        runs[fraction] = hdf5file.read(out)[1]["rounds"]
    assert runs[0.9]["train_loss"][1] == runs[None]["train_loss"][1], "attackers train like all others"
    assert runs[0.9]["test_accuracy"][1] != runs[None]["test_accuracy"][1]


def test_a_backdoor_is_learned_and_its_success_is_shown(tmp_path: Path, invoke: Invoke) -> None:
    attack = {"name": "backdoor", "fraction": 0.5, "size": 0.5, "target": 3}
    flora_hpc.run(QUICKSTART, out=tmp_path / "run", rounds=2, attack=attack, client__lr=0.01)
    rounds = hdf5file.read(tmp_path / "run")[1]["rounds"]
    success = rounds["backdoor_success"]
    assert success[0] < 0.1  # the square alone
    assert success[2] > 0.4
    assert rounds["test_accuracy"][2] > rounds["test_accuracy"][0], "clean images hide the backdoor"
    shown = " ".join(invoke("show", tmp_path / "run").split())
    assert f"backdoor {success[0]:.4f} → {success[2]:.4f} of triggered test images get the target" in shown


def test_a_target_that_is_no_class_is_refused() -> None:
    with pytest.raises(UserError, match=r"attack.target: there is no class 10, since the 10 classes count from 0; lower it"):
        flora_hpc.plan(QUICKSTART, attack={"name": "backdoor", "target": 10})


def test_attackers_that_know_the_others_need_a_rule_that_has_all_updates() -> None:
    with pytest.raises(UserError) as error:
        flora_hpc.plan(QUICKSTART, attack="alie")
    assert str(error.value).startswith(
        "attack.name: alie needs the updates of all honest clients, which exact sums do not have; set"
    )
    flora_hpc.plan(QUICKSTART, attack="alie", combine={"name": "trimmed_mean", "fraction": 0})


def test_more_attackers_than_the_rule_expects_are_told_with_both_numbers() -> None:
    def sentences(fraction: float, algorithm: str) -> list[str]:
        plan = flora_hpc.plan(QUICKSTART, algorithm=algorithm, attack={"name": "zero", "fraction": fraction})
        return [text for text in plan.warnings if text.startswith("attack.fraction")]

    (text,) = sentences(0.6, "krum")
    assert "6 of 10 clients attack, a share of 0.6, and krum expects at most 0.2" in text
    assert sentences(0.2, "krum") == sentences(0.6, "fedavg") == []


def test_an_attack_without_a_name_is_refused() -> None:
    with pytest.raises(UserError, match=r"attack: must name the attack, one of alie, backdoor, gaussian, "):
        flora_hpc.load_config(QUICKSTART, attack={"fraction": 0.3})


def test_a_client_with_flipped_labels_learns_another_loss() -> None:
    """The loss of the first step with flipped labels is that of a client whose data have these labels."""
    setup, state = four_clients(epochs=2)
    batches = trainer.make_batches(np.array([0, 1]), setup.holdings, setup.client, 0, 1, setup.padding_multiple)
    relabel = torch.tensor([[1, 0], [0, 1]])
    flipped = trainer.train(setup.task, trainer.Start(state.adapter, relabel=relabel), batches)
    wrong = setup.task._replace(labels=1 - setup.task.labels)
    expected = (
        trainer.train(wrong, trainer.Start(state.adapter), batches),
        trainer.train(setup.task, trainer.Start(state.adapter), batches),
    )
    assert torch.equal(flipped.updates[0], expected[0].updates[0])
    assert torch.equal(flipped.updates[1], expected[1].updates[1])
    assert not torch.equal(flipped.updates[0], expected[1].updates[0])
