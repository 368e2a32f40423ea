"""Parts of a round that do not go together are refused before round 0, in one sentence with the cure."""

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import pytest
import torch

import flora_hpc
from flora_hpc import assembly, lowrank, misfits, plugins, productsums
from flora_hpc.algorithms._algorithm import Algorithm, Setting, Sharing
from flora_hpc.config import PARTS
from flora_hpc.errors import UserError
from flora_hpc.federation import Federation
from flora_hpc.methods._lora import layers_of
from flora_hpc.methods._method import Method
from tests.conftest import ROOT, refusal

QUICKSTART = str(ROOT / "configs/quickstart.yaml")
BLOCKS = ("text.transformer.resblocks.0.attn.out_proj", "text.transformer.resblocks.1.attn.out_proj")
LORA = {f"{block}.{factor}": shape for block in BLOCKS for factor, shape in (("lora_A", (2, 4)), ("lora_B", (4, 2)))}
DUAL = LORA | {f"{block}.{factor}": shape for block in BLOCKS for factor, shape in (("private_A", (3, 4)), ("private_B", (4, 3)))}
HEAD = {"head": (3, 4)}
SCAFFOLD = {"name": "scaffold"}


def method(shapes: dict[str, tuple[int, ...]]) -> Method:
    return Method(
        shapes,
        lambda rng: {name: torch.zeros(shape) for name, shape in shapes.items()},
        lambda tensors, noise: torch.zeros(1, 2, 4),
        lambda tensors, classes, inputs, noise: inputs @ classes.transpose(1, 2),
        how="tensors",
        layers=layers_of(shapes, 2.0),
        merge=lambda matrices: None,
    )


def build(shapes: dict[str, tuple[int, ...]] = LORA, paired: bool = False, **options: Any) -> Federation:
    config = flora_hpc.load_config({"client": {"loss": "classification"}} | options)
    return assembly.build(config, method(shapes), Setting(config.client, tuple(shapes), paired, 10))


def refused(shapes: dict[str, tuple[int, ...]] = LORA, paired: bool = False, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        build(shapes, paired, **options)
    return str(error.value)


# --- what goes together


@pytest.mark.parametrize("name", plugins.members("algorithms"))
def test_every_algorithm_goes_with_low_rank_adapters(name: str) -> None:
    assert build(DUAL, algorithm=name).name == name


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", plugins.members("algorithms"))
def test_a_named_part_takes_the_place_of_the_algorithms_or_is_refused(name: str, part: str) -> None:
    """With FedAvg for the rest."""
    setting = Setting(flora_hpc.load_config({}).client, tuple(DUAL), False, 10)
    own = getattr(plugins.member("algorithms", name).build(plugins.member("algorithms", name).Options(name=name), setting), part)
    if own is None:
        assert f"{part}.name: {name} has no {part} part of its own, only " in refused(DUAL, **{part: name})
    elif part in ("local", "combine", "server") and name == "feddyn":
        assert "the local, combine and server parts of feddyn go together only" in refused(DUAL, **{part: name})
    elif name == "fedsvd":
        assert "the sharing, combine and server parts of fedsvd go together only" in refused(DUAL, **{part: name})
    elif name == "lora_a2":
        assert "the sharing and combine parts of lora_a2 go together only" in refused(DUAL, **{part: name})
    elif part in ("local", "server") and name == "scaffold":
        assert "take local and server from the same algorithm" in refused(DUAL, **{part: name})
    else:
        assert build(DUAL, **{part: name}).name == f"fedavg, {part} of {name}"


def test_local_and_server_of_one_algorithm_beside_another() -> None:
    """What its combine is, the user says."""
    built = build(local="scaffold", server="scaffold", combine={"name": "fedavg", "weights": "uniform"})
    whole = build(algorithm="scaffold")
    assert built.channels(1) == whole.channels(1) == {"update": 32, "control": 32}
    assert built.message_bytes(1) == whole.message_bytes(1) == 4 * 32
    assert built.extra_bytes(1) == whole.extra_bytes(1) == 4 * 32


def test_an_algorithm_that_defines_all_parts_leaves_none_to_fedavg() -> None:
    built = build(algorithm="fednova", sharing="ffa_lora", transform="top_k", server="fedadam")
    assert built.name == "fednova, sharing of ffa_lora, transform of top_k, server of fedadam"
    assert built.channels(1) == {"update": 16, "normalizer": 1}
    assert built.transform is not None
    assert len(built.warnings) == 1
    assert "fednova: its paper normalises the steps of SGD" in built.warnings[0]


@pytest.mark.parametrize(
    ("options", "memory"),
    [
        ({"algorithm": "fedavg"}, {}),
        ({"algorithm": "scaffold"}, {"local.control": 32}),
        ({"algorithm": "ditto", "sharing": "ffa_lora"}, {"personal": 16}),
        ({"algorithm": "fedsa_lora", "transform": "top_k"}, {"private": 16, "transform.error": 16}),
        (
            {"algorithm": "fedsa_lora", "client": {"optimizer_state": "keep"}},
            {"private": 16, "optimizer.0": 32, "optimizer.1": 32, "optimizer.2": 1},
        ),
    ],
    ids=str,
)
def test_what_a_client_remembers_at_first(options: dict[str, Any], memory: dict[str, int]) -> None:
    """Its own part and its own model are those of the initial adapter; the rest is zero."""
    built, config = build(**options), flora_hpc.load_config(options)
    adapter = torch.arange(32.0)
    initial = built.memory(adapter, config.client)
    assert {name: len(values) for name, values in initial.items()} == memory
    roles = built.roles_in(1)
    for name, values in initial.items():
        columns = {"private": roles.own, "personal": roles.trained}.get(name)
        assert values.equal(torch.zeros(memory[name]) if columns is None else columns.take(adapter))


def test_roles_repeat() -> None:
    built = build(algorithm="rolora")
    assert [len(built.roles_in(number).frozen) for number in (1, 2, 3)] == [2, 2, 2]
    assert built.roles_in(1) == built.roles_in(3) != built.roles_in(2)
    assert built.sent_numbers(method(LORA), np.arange(3), 1).tolist() == [16] * 3
    assert sum(prod(shape) for shape in LORA.values()) == 32


def test_control_variates_and_unequal_numbers_of_steps() -> None:
    (warning,) = misfits.warn_of_unequal_steps(build(algorithm="scaffold"), 1, 1200)
    assert warning.startswith("clients make 1 to 1,200 steps in a round, and the algorithm's control variates assume equal numbers")
    assert misfits.warn_of_unequal_steps(build(algorithm="scaffold"), 3, 3) == ()
    assert misfits.warn_of_unequal_steps(build(algorithm="fedavg"), 1, 3) == ()


# --- what does not


PORTIONS = {"transform": "top_k", "server": "fedavgm", "algorithm": "scaffold", "combine": "fednova"}


@pytest.mark.parametrize("part", PORTIONS)
def test_clients_with_portions_of_the_adapter_are_averaged_plainly(part: str) -> None:
    """The padding of an update, zeros minus the adapter, would be encoded, rescaled or stepped along."""
    told = refusal("plan", QUICKSTART, "-s", "method.name=feddylora", "-s", f"{part}={PORTIONS[part]}")
    assert told.startswith("algorithm: this method's clients hold different portions of the adapter, and ")
    assert told.endswith("; take fedavg, or method.name: flora")


@pytest.mark.parametrize("name", ["fedper", "lg_fedavg"])
def test_blocks_are_counted_where_all_tensors_lie_in_blocks(name: str) -> None:
    told = refusal("plan", QUICKSTART, "-s", "method.name=fedtext", "-s", f"algorithm={name}")
    assert told.startswith(f"algorithm.name: {name} counts layers in blocks of the towers, and ")


REMEMBERS = {
    "local": ({"local": "feddyn", "combine": "feddyn", "server": "feddyn"}, "the local part remembers every trained number"),
    "own model": ({"local": "ditto"}, "the local part trains a second model"),
    "transform": ({"transform": "top_k"}, "the transform part remembers every sent number"),
    "server": ({"server": "fedadam"}, "the server part remembers every number"),
    "optimizer": ({"client": {"optimizer_state": "keep"}}, "client.optimizer_state: keep remembers every trained number"),
}


@pytest.mark.parametrize("what", REMEMBERS)
def test_tensors_that_take_turns_and_memories(what: str) -> None:
    options, reason = REMEMBERS[what]
    assert refused(algorithm="rolora", **options) == (
        f"algorithm: other tensors are trained from round to round, but {reason}; leave one of the two out"
    )
    assert refused(sharing="rolora", **options).startswith("sharing: other tensors are trained from round to round, but ")


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "a local part without its server": (
        {"local": "scaffold"},
        "algorithm: its local part needs the server's control, which this server part does not send; "
        "take local and server from the same algorithm",
    ),
    "a server without its local part": (
        {"server": "scaffold"},
        "algorithm: its server part needs the clients' control, which nothing sends; take local and server from the same algorithm",
    ),
    "another server": (
        {"algorithm": "scaffold", "server": "fedadam"},
        "algorithm: its local part needs the server's control, which this server part does not send; "
        "take local and server from the same algorithm",
    ),
    "half of an algorithm": (
        {"algorithm": "feddyn", "server": "fedadam"},
        "server: the local, combine and server parts of feddyn go together only, and here server is that of fedadam; "
        "set algorithm: feddyn and leave local, combine and server out",
    ),
    "a pull that a normaliser does not know of": (
        {"algorithm": "fednova", "local": "fedprox"},
        "local: the local and combine parts of fednova go together only, and here local is that of fedprox; "
        "set algorithm: fednova and leave local and combine out",
    ),
    "a part that an algorithm does not have": (
        {"server": "fedprox"},
        "server.name: fedprox has no server part of its own, only local; name another algorithm, see flora-hpc list algorithms",
    ),
    "a transform that an algorithm does not have": (
        {"transform": "scaffold"},
        "transform.name: scaffold has no transform part of its own, only local, combine and server; "
        "name another algorithm, see flora-hpc list algorithms",
    ),
    "another loss": (
        {"algorithm": "logit_calibration", "client": {"loss": "contrastive"}},
        "client.loss: contrastive would be replaced, since the algorithm has its own; set client.loss: classification",
    ),
    "a loss with classes on pairs": (
        {"algorithm": "logit_adjustment", "paired": True, "client": {"loss": "contrastive"}},
        "algorithm: its loss needs classes, but in these data every image has a caption of its own; take another algorithm",
    ),
    "private tensors and corrections": (
        {"algorithm": "feddyn", "sharing": "fedsa_lora"},
        "sharing: some tensors stay with their client, but the local part has h of every trained number; leave one of the two out",
    ),
    "momentum that is kept": (
        {"algorithm": "fednova", "client": {"optimizer": "sgd", "momentum": 0.9, "optimizer_state": "keep"}},
        "algorithm.name: fednova's a_i begins each round without momentum, which client.optimizer_state: keep keeps; "
        "set client.optimizer_state: reset",
    ),
    "private tensors and control variates": (
        {"algorithm": "scaffold", "sharing": "fedsa_lora"},
        "sharing: some tensors stay with their client, but the local part has control of every trained number; "
        "leave one of the two out",
    ),
    "private tensors and a second model": (
        {"algorithm": "fedsa_lora", "local": "ditto"},
        "algorithm: some tensors stay with their client, but the local part trains a second model; leave one of the two out",
    ),
    "a pattern that fits nothing": (
        {"sharing": {"name": "by_name", "private": ["*.lora_C"]}},
        f"sharing.private: '*.lora_C' fits none of the trained tensors ({', '.join(LORA)}); correct it, or leave it out",
    ),
    "a pattern of frozen tensors that fits nothing": (
        {"algorithm": {"name": "by_name", "frozen": ["head"]}},
        f"algorithm.frozen: 'head' fits none of the trained tensors ({', '.join(LORA)}); correct it, or leave it out",
    ),
    "nothing is shared": (
        {"algorithm": {"name": "by_name", "private": ["*"]}},
        f"algorithm.name: none of the trained tensors {', '.join(LORA)} is sent to the server in round 1; share one of them",
    ),
    "everything is frozen": (
        {"sharing": {"name": "by_name", "frozen": ["*"]}},
        f"sharing.name: none of the trained tensors {', '.join(LORA)} is sent to the server in round 1; share one of them",
    ),
    "too many private blocks": (
        {"algorithm": {"name": "fedper", "num_private": 2}},
        "algorithm.num_private: fedper keeps 2 blocks of layers private, but the method trains tensors of 2 only, and one must be "
        "shared; lower num_private, or take a method with more blocks",
    ),
    "too many private blocks at the beginning": (
        {"sharing": {"name": "lg_fedavg", "num_private": 5}},
        "sharing.num_private: lg_fedavg keeps 5 blocks of layers private, but the method trains tensors of 2 only, and one must be "
        "shared; lower num_private, or take a method with more blocks",
    ),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_parts_that_do_not_go_together(what: str) -> None:
    options, sentence = MISTAKES[what]
    assert refused(**options) == sentence


@pytest.mark.parametrize("name", ["ffa_lora", "fedsa_lora", "rolora"])
def test_factors_of_a_method_that_has_none(name: str) -> None:
    rest = f"name: {name} treats the A and B of LoRA adapters differently, and this method has none; "
    cure = "set method.name: flora, or take another algorithm"
    assert refused(HEAD, algorithm=name) == f"algorithm.{rest}{cure}"
    assert refused(HEAD, sharing=name) == f"sharing.{rest}{cure}"


def test_private_in_some_rounds_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an algorithm of the user's own may have it."""
    own = Sharing(lambda name, number: "private" if name.endswith("lora_B") and number % 2 else "shared", period=2)
    monkeypatch.setattr(plugins.member("algorithms", "by_name"), "build", lambda options, setting: Algorithm(sharing=own))
    name = f"{BLOCKS[0]}.lora_B"
    assert refused(algorithm="by_name") == (
        f"algorithm.name: {name} is private in round 1 and shared in round 2; make it private in all rounds, or in none"
    )


@pytest.mark.parametrize(
    ("settings", "beginning"),
    [
        (["method={name: fedlc}", "algorithm=ffa_lora"], "algorithm.name: ffa_lora treats the A and B"),
        (["algorithm={name: fedper, num_private: 9}"], "algorithm.num_private: fedper keeps 9 blocks of layers private"),
        (["server=fedprox"], "server.name: fedprox has no server part of its own"),
        (["local=scaffold"], "algorithm: its local part needs the server's control"),
        (["algorithm={name: by_name, private: ['*.lora_C']}"], "algorithm.private: '*.lora_C' fits none of the trained tensors"),
    ],
    ids=str,
)
def test_a_plan_and_a_run_refuse_it(settings: list[str], beginning: str, tmp_path: Any) -> None:
    """Nothing is written."""
    words = [word for setting in settings for word in ("-s", setting)]
    assert refusal("plan", QUICKSTART, *words).startswith(beginning)
    assert refusal("run", QUICKSTART, *words, "--out", tmp_path / "run").startswith(beginning)
    assert not (tmp_path / "run" / "run.h5").exists()


# --- products of low-rank adapters


FACTORS = "new factors A and B of each layer"


def test_new_factors_need_layers_with_factors() -> None:
    for name in ("flexlora", "lora_fair", "fedsvd"):
        assert "treats the A and B of LoRA adapters differently, and this method has none" in refused(HEAD, algorithm=name)
    told = refused(LORA | HEAD, algorithm="flexlora")
    assert told == (
        f"algorithm.name: flexlora makes {FACTORS}, and this method also trains head, which is no such factor; "
        "set method.name: flora, or take another algorithm"
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"local": "scaffold", "server": "scaffold"}, "the sharing, combine and server parts of flexlora go together only"),
        ({"server": "fedavgm"}, "the sharing, combine and server parts of flexlora go together only, and here server is that"),
        ({"sharing": "ffa_lora"}, "the sharing, combine and server parts of flexlora go together only, and here sharing is"),
        ({"local": "ditto"}, f"{FACTORS} in every round, but the local part trains a second model, which means nothing"),
        ({"transform": "top_k"}, f"{FACTORS} in every round, but the transform part remembers every sent number"),
        ({"client": {"optimizer_state": "keep"}}, f"{FACTORS} in every round, but client.optimizer_state: keep remembers"),
    ],
    ids=str,
)
def test_what_new_factors_would_make_meaningless_is_refused(options: dict[str, Any], reason: str) -> None:
    assert reason in refused(algorithm="flexlora", **options)


def test_merging_needs_a_method_that_can() -> None:
    with pytest.raises(UserError, match=r"flora_stacking merges what it learns into the frozen weights, and method flora cannot"):
        assembly.build(
            flora_hpc.load_config({"algorithm": "flora_stacking"}),
            replace(method(LORA), merge=None),
            Setting(flora_hpc.load_config({}).client, tuple(LORA), False, 10),
        )


@pytest.mark.parametrize(("size", "ranks"), [(1.0, 9), (0.5, None)])
def test_merged_weights_go_down_in_the_smaller_form(size: float, ranks: int | None) -> None:
    """As factors where every client has the change of the round before, of fewer numbers than the whole matrices."""
    large = {"layer.lora_A": (2, 64), "layer.lora_B": (64, 2)}
    built = build(large, algorithm="fedex_lora", cohort={"fraction": size})
    assert built.merged.num_bytes == 4 * (64 * 64 if ranks is None else ranks * 2 * 128)
    assert (built.message_bytes(1), built.message_bytes(2)) == (0, built.merged.num_bytes)
    assert build(LORA, algorithm="fedex_lora").merged.form == "whole matrices"
    clients = np.arange(3)
    assert built.received_numbers(method(large), clients, 1).tolist() == [256] * 3
    assert build(large, algorithm="flora_stacking").received_numbers(method(large), clients, 1).tolist() == [0] * 3


def test_new_factors_beside_a_local_part_without_memory() -> None:
    assert build(algorithm="flexlora", local="fedprox").name == "flexlora, local of fedprox"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"algorithm": "fedsa_lora"}, "with fedsa_lora each layer has a factor that stays with its client"),
        ({"algorithm": "fednova"}, "fednova averages other numbers than the updates of these factors"),
        ({"algorithm": "holders_only"}, "holders_only averages other numbers than the updates of these factors"),
    ],
    ids=str,
)
def test_a_cross_term_without_means_of_both_factors_is_refused(options: dict[str, Any], reason: str) -> None:
    start = "evaluate.cross_term: compares the means of A and B over clients with that of B A, and"
    assert refused(evaluate={"cross_term": True}, **options) == f"{start} {reason}; leave it out"


def test_a_cross_term_needs_low_rank_adapters() -> None:
    told = refusal("plan", QUICKSTART, "-s", "evaluate.cross_term=true", "-s", "method.name=fedlc")
    assert told.endswith("with that of B A, and method fedlc names no layer with such factors; leave it out")


def test_a_cross_term_leaves_private_adapters_out() -> None:
    built = build(DUAL, algorithm="dual_lora", evaluate={"cross_term": True})
    places = lowrank.places(method(DUAL), built.roles_in(1))
    assert [place.layer.a for place in places] == [f"{block}.lora_A" for block in BLOCKS]
    assert productsums.num_bytes(places) == 2 * 8 * (2 * 16 + 1)


def test_a_mean_over_holders_says_when_it_is_the_mean() -> None:
    (warning,) = build(algorithm="holders_only").warnings
    assert "every client holds all numbers, so the mean over holders is the mean" in warning


def test_ranks_that_all_clients_share_are_not_tested_one_by_one() -> None:
    assert "with method flora all clients have one rank; leave it out" in refused(evaluate={"per_rank": True})
