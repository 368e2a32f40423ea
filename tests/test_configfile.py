"""Mistakes in a configuration, and their messages."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from flora_hpc import plugins
from flora_hpc.config import Config
from flora_hpc.configfile import load
from flora_hpc.errors import UserError

Load = Callable[..., tuple[Config, list[str]]]
Problems = Callable[..., list[str]]


@pytest.fixture
def read(tmp_path: Path) -> Load:
    """`read(text, "key=value", ...)`: load `text` from a file run.yaml with overrides."""

    def read(text: str, *overrides: str) -> tuple[Config, list[str]]:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return load(path, list(overrides))

    return read


@pytest.fixture
def problems(read: Load) -> Problems:
    """`problems(text, "key=value", ...)`: the lines of its error."""

    def problems(text: str, *overrides: str) -> list[str]:
        with pytest.raises(UserError) as error:
            read(text, *overrides)
        return str(error.value).splitlines()

    return problems


# What is right


def test_the_old_name_of_algorithm_is_read_with_a_note(read: Load) -> None:
    """Also in the config.yaml of runs of earlier versions."""
    config, notes = read("aggregator: {name: fedavg}")
    assert config == read("algorithm: fedavg")[0]
    assert notes == ["aggregator: is called algorithm now, and was read as such"]
    assert read("aggregator: {name: fedavg}", "algorithm=fedprox")[0].algorithm.name == "fedprox"


def test_a_part_by_hand_and_its_shorthand(read: Load) -> None:
    config, _ = read("algorithm: fedprox\nserver: {name: fedadam, lr: 0.03}", "algorithm.mu=0.5", "transform=top_k")
    assert config.algorithm.model_dump() == {"name": "fedprox", "mu": 0.5}
    assert (config.server and config.server.name, config.transform and config.transform.name) == ("fedadam", "top_k")
    assert read(config.to_yaml())[0] == config
    assert read(config.to_yaml(), "server=null")[0].server is None


def test_what_is_left_out_has_defaults(read: Load) -> None:
    config, notes = read("rounds: 3")
    assert (config.seed, config.rounds, config.client.batch_size, config.method.name) == (0, 3, 128, "flora")
    assert notes == []


def test_a_member_is_chosen_by_name_and_has_its_own_options(read: Load) -> None:
    config, _ = read("partition: {name: dirichlet, num_clients: 7, beta: 0.3}")
    expected = {"name": "dirichlet", "num_clients": 7, "examples_per_client": None, "beta": 0.3, "min_examples": 1}
    assert config.partition.model_dump() == expected


@pytest.mark.parametrize("text", ["5e-5", "5.0e-5", "0.00005"])
def test_a_small_number_may_be_written_in_any_way(read: Load, text: str) -> None:
    """YAML 1.1 reads 5e-5 as a text, since it has no dot."""
    config, _ = read(f"client: {{lr: {text}}}")
    assert config.client.lr == 5e-5


def test_the_resolved_text_loads_to_an_equal_config(read: Load) -> None:
    config, _ = read(
        "seed: 3\nmethod: {rank: 4, targets: [text.q_proj, text.v_proj]}\npartition: {name: dirichlet, beta: 1e-3}\n"
        "cohort: {size: 5}\nclient: {lr: 5e-5, betas: [0.8, 0.99], shuffle: false}\ncomm: {backend: mpi}"
    )
    again, _ = read(config.to_yaml())
    assert again == config


def test_the_resolved_text_names_every_default(read: Load) -> None:
    text = read("rounds: 3")[0].to_yaml()
    assert "name: fedavg" in text
    assert "batch_size: 128" in text


def test_a_config_is_frozen(read: Load) -> None:
    config, _ = read("rounds: 3")
    for part, key in ((config, "rounds"), (config.client, "lr"), (config.method, "rank")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, key, 1)


# What is wrong in a file

ALGORITHMS = ", ".join(plugins.members("algorithms"))
OWN = "; a part of your own needs --plugin FILE.py"
MISTAKES = {
    "negative": ("rounds: -1", "rounds: must be at least 0, not -1"),
    "not a whole number": ("rounds: 2.5", "rounds: must be a whole number, not 2.5"),
    "a text for a whole number": ("rounds: ten", "rounds: must be a whole number, not 'ten'"),
    "infinite": ("rounds: .inf", "rounds: must be a finite number, not inf"),
    "nothing": ("rounds:", "rounds: must be a whole number, not null"),
    "a text for a number": ("client: {lr: fast}", "client.lr: must be a number, not 'fast'"),
    "NaN": ("client: {lr: .nan}", "client.lr: must be a finite number, not nan"),
    "zero for a step": ("client: {lr: 0}", "client.lr: must be greater than 0.0, not 0"),
    "too much": ("cohort: {fraction: 1.5}", "cohort.fraction: must be at most 1.0, not 1.5"),
    "not below 1": ("data: {test_fraction: 1}", "data.test_fraction: must be less than 1.0, not 1"),
    "neither true nor false": ("client: {shuffle: maybe}", "client.shuffle: must be true or false, not 'maybe'"),
    "a number for a text": ("model: {name: 5}", "model.name: must be a text, not 5; put it in quotes if it is meant"),
    "not on the list": ("client: {loss: contrstive}", "client.loss: must be 'contrastive' or 'classification', not 'contrstive'"),
    "a value for a section": ("client: 5", "client: must hold keys of its own, not 5"),
    "a value for a family": ("method: flora", "method: must hold keys such as 'name: flora', not 'flora'"),
    "an option of a member": ("method: {rank: 0}", "method.rank: must be at least 1, not 0"),
    "a missing option": ("data: {name: hdf5}", "data.path: is required; give for example -s data.path=FILE.h5"),
    "a missing folder": ("data: {name: imagefolder}", "data.path: is required; give for example -s data.path=FOLDER"),
    "a rule of a member's own": (
        "method: {targets: [text.out_proj, text.out_proj]}",
        "method.targets: names a layer twice: text.attn.out_proj",
    ),
    "no such member": (
        "algorithm: {name: fedag}",
        f"algorithm.name: no algorithm 'fedag'; did you mean 'fedavg'? ({ALGORITHMS}){OWN}",
    ),
    "no such backend": (
        "comm: {backend: mppi}",
        "comm.backend: no backend 'mppi'; did you mean 'mpi'? (auto, gloo, mpi, nccl, serial)",
    ),
    "two ways to say it": ("cohort: {fraction: 0.5, size: 3}", "cohort: give cohort.fraction or cohort.size, not both"),
    "more than there are": (
        "cohort: {size: 11}\npartition: {num_clients: 10}",
        "cohort.size: 11 clients a round, but only 10 are registered; lower cohort.size or raise partition.num_clients",
    ),
    "the old name beside the new one": (
        "aggregator: {name: fedavg}\nalgorithm: fedavg",
        "aggregator: is called algorithm now; give that alone",
    ),
    "a part without a name": (
        "local: {mu: 0.1}",
        "local: must name the algorithm whose part it is; options of algorithm: ... itself are its own keys",
    ),
}


@pytest.mark.parametrize(("text", "sentence"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_gets_its_sentence(problems: Problems, text: str, sentence: str) -> None:
    assert problems(text) == [f"run.yaml: {sentence}"]


def test_all_mistakes_are_reported_at_once(problems: Problems) -> None:
    text = """
        rounds: -1
        method: {name: flora, rank: 0}
        partition: {name: dirichlet, bta: 0.1}
        client: {local_epoch: 2}
        comm: {backend: mppi}
        """
    assert set(problems(text)) == {
        "run.yaml: rounds: must be at least 0, not -1",
        "run.yaml: method.rank: must be at least 1, not 0",
        "run.yaml: partition.bta: unknown key; did you mean partition.beta?",
        "run.yaml: client.local_epoch: unknown key; did you mean client.epochs?",
        "run.yaml: comm.backend: no backend 'mppi'; did you mean 'mpi'? (auto, gloo, mpi, nccl, serial)",
    }


def test_one_mistake_does_not_cause_another(problems: Problems) -> None:
    """Five clients a round are fine for the ten that partition has, once the mistake in partition is corrected."""
    assert problems("partition: {name: dirichlet, bta: 0.1, num_clients: 10}\ncohort: {size: 5}") == [
        "run.yaml: partition.bta: unknown key; did you mean partition.beta?"
    ]


def test_a_wrong_entry_of_a_list_is_one_mistake(problems: Problems) -> None:
    (line,) = problems("method: {targets: [text.out]}")
    assert line.startswith("run.yaml: method.targets.0: must be 'text.q_proj', 'text.k_proj'")


@pytest.mark.parametrize("value", ["[]", "text.out_proj"], ids=["empty", "a text"])
def test_what_should_be_a_list_is_told_in_plain_words(problems: Problems, value: str) -> None:
    """The message has no words of pydantic."""
    (line,) = problems(f"method: {{targets: {value}}}")
    assert line.startswith("run.yaml: method.targets: ")
    assert "tuple" not in line.lower()


# The nearest name


def test_a_misspelt_key_is_answered_with_the_nearest_of_its_section(problems: Problems) -> None:
    assert problems("client: {batchsize: 5}") == ["run.yaml: client.batchsize: unknown key; did you mean client.batch_size?"]


def test_a_misspelt_section_is_answered_with_the_nearest(problems: Problems) -> None:
    assert problems("algoritm: {name: fedavg}") == ["run.yaml: algoritm: unknown key; did you mean algorithm?"]


@pytest.mark.parametrize(
    ("text", "found", "right"),
    [
        ("method: {batch_size: 5}", "method.batch_size", "client.batch_size"),
        ("client: {num_clients: 5}", "client.num_clients", "partition.num_clients"),
        ("data: {num_clients: 5}", "data.num_clients", "partition.num_clients"),
        ("num_clients: 5", "num_clients", "partition.num_clients"),
        ("client: {learning_rate: 5}", "client.learning_rate", "client.lr"),
        ("learning_rate: 5", "learning_rate", "client.lr"),
        ("num_rounds: 5", "num_rounds", "rounds"),
        ("client: {local_epochs: 5}", "client.local_epochs", "client.epochs"),
        ("cohort: {clients_per_round: 5}", "cohort.clients_per_round", "cohort.size"),
    ],
)
def test_a_key_in_the_wrong_place_is_answered_with_the_right_place(problems: Problems, text: str, found: str, right: str) -> None:
    assert problems(text) == [f"run.yaml: {found}: unknown key; did you mean {right}?"]


def test_a_key_near_to_nothing_is_answered_with_all_of_its_section(problems: Problems) -> None:
    assert problems("evaluate: {zzz: 1}") == [
        "run.yaml: evaluate.zzz: unknown key "
        "(known here: cross_term, every, fine_tune_epochs, overlap, per_client, per_rank, personal)"
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("rounds: true", "rounds: must be a whole number, not true"),
        ("client: {epochs: false}", "client.epochs: must be a whole number, not false"),
        ("method: {rank: true}", "method.rank: must be a whole number, not true"),
        ("client: {lr: yes}", "client.lr: must be a number, not 'yes'"),
        ("client: {betas: [0.9, true]}", "client.betas: must be a number, not [0.9, True]"),
        ("client: {shuffle: no}", "client.shuffle: must be true or false, not 'no'"),
        ("evaluate: {per_client: 1}", "evaluate.per_client: must be true or false, not 1"),
        ("rounds: 1_000", "rounds: must be a whole number, not '1_000'"),
        ("comm: {timeout_seconds: 1:30}", "comm.timeout_seconds: must be a number, not '1:30'"),
        ("rounds: '5'", "rounds: must be a whole number, not '5'"),
        ("client: {weight_decay: .inf}", "client.weight_decay: must be a finite number, not inf"),
        ("rounds: 9223372036854775808", f"rounds: must be less than {2**63}, not {2**63}"),
        ("data: {name: 5}", "data.name: must be a text, not 5; put it in quotes if it is meant"),
        ('data: {name: cifar10, root: "a\\0b"}', "data.root: must not hold the character NUL"),
        ("features: {store: ~nobody-of-this-name}", "features.store: begins with ~, but the home folder is not known here"),
        ("model: {pretrained: ~nobody-of-this-name/w.pt}", "model.pretrained: begins with ~, but the home folder"),
        ("model: {pretrained: 'https://example.org/w.pt'}", "model.pretrained: is an address; give a path of this system"),
        ("features: {store: 's3://bucket/features'}", "features.store: is an address; give a path of this system"),
        ("model: {pretrained: 'D:\\w.pt'}", "model.pretrained: is a path of Windows; write it as this system has it"),
    ],
)
def test_a_value_is_not_taken_for_one_of_another_kind(problems: Problems, text: str, sentence: str) -> None:
    (line,) = problems(text)
    assert line.startswith(f"run.yaml: {sentence}")


def test_zeros_before_a_number_mean_nothing(read: Load) -> None:
    """YAML 1.1 read 008 as 8 by way of a text, and 010 as 8 too."""
    assert [read(f"seed: {text}")[0].seed for text in ("007", "008", "010", "0o10")] == [7, 8, 10, 8]
    assert [read("seed: 1", f"seed={text}")[0].seed for text in ("007", "008", "010", "0o10")] == [7, 8, 10, 8]


def test_a_file_of_mistakes_is_answered_soon_and_not_at_length(problems: Problems) -> None:
    lines = problems("".join(f"key{number}: {'x' * 300}\n" for number in range(1000)))
    assert 1 < len(lines) < 50
    assert all(len(line) < 400 for line in lines)
    (line,) = problems(f"rounds: {'x' * 3000}")
    assert len(line) < 200


def test_texts_that_look_like_other_kinds_stay_texts_in_what_a_run_keeps(read: Load) -> None:
    config, _ = read("data: {name: pairs, path: x.csv, image_column: '008', caption_column: 'no'}", "data.test_path='1e3'")
    again, _ = read(config.to_yaml())
    assert again == config
    assert (again.data.image_column, again.data.caption_column, str(again.data.test_path)) == ("008", "no", "1e3")


# Overrides


@pytest.mark.parametrize(
    "value", ["a photo of a {} #1", "#{}", "{}: a photo", "a photo: {}", "{}, a type of pet", "[{}]]", "a 'b' {}", "- {}"]
)
def test_an_override_is_one_text_even_where_yaml_would_see_more(read: Load, value: str) -> None:
    assert read("rounds: 1", f"data.caption={value}")[0].data.caption == value


@pytest.mark.parametrize("value", ["", " "])
def test_an_override_without_a_value_is_no_null(problems: Problems, value: str) -> None:
    """As in -s data.root=$ROOT when ROOT is not set."""
    assert problems("rounds: 1", f"data.root={value}") == ["-s data.root=: has no value; write data.root=null for none"]


def test_an_override_goes_before_the_file(read: Load) -> None:
    config, notes = read("client: {lr: 1.0e-3, epochs: 2}", "client.lr=5e-5", "rounds=7")
    assert (config.client.lr, config.client.epochs, config.rounds) == (5e-5, 2, 7)
    assert notes == []


def test_an_override_may_be_a_list(read: Load) -> None:
    assert read("rounds: 1", "method.targets=[text.q_proj, text.v_proj]")[0].method.targets == ("text.q_proj", "text.v_proj")


def test_an_override_may_hold_an_equals_sign(read: Load) -> None:
    assert read("rounds: 1", "data.caption=x={}")[0].data.caption == "x={}"


@pytest.mark.parametrize("text", ["client.lr", "=3"], ids=["no value", "no key"])
def test_an_override_that_is_not_key_and_value_is_refused(problems: Problems, text: str) -> None:
    assert problems("rounds: 1", text) == [f"-s {text}: write -s key=value, for example -s client.lr=1.0e-4"]


def test_an_override_below_a_value_is_refused(problems: Problems) -> None:
    assert problems("rounds: 1", "rounds.x=3") == ["-s rounds.x: 'rounds' holds a value, not keys of its own"]


def test_a_mistake_in_an_override_is_not_blamed_on_the_file(problems: Problems) -> None:
    assert problems("seed: -1", "rounds=-3") == [
        "run.yaml: seed: must be at least 0, not -1",
        "-s rounds: must be at least 0, not -3",
    ]


@pytest.mark.parametrize("override", ["method.targets=[text.out]", "method={rank: 0}", "clint.lr=3", "cohort.size=99"])
def test_nor_is_one_that_shows_above_or_below_the_key_given(problems: Problems, override: str) -> None:
    """The empty file has no mistake."""
    assert all(line.startswith("-s ") for line in problems("rounds: 1", override))


def test_another_member_drops_the_old_ones_keys_and_says_so(read: Load) -> None:
    config, notes = read("partition: {name: dirichlet, num_clients: 7, beta: 0.3}", "partition.name=iid")
    assert config.partition.model_dump() == {"name": "iid", "num_clients": 7, "examples_per_client": None}
    (note,) = notes
    assert "beta" in note
    assert "dirichlet" in note


def test_a_member_that_the_file_left_to_the_default_drops_its_keys_too(read: Load) -> None:
    """`flora` is the default method; `fedlc` has no rank."""
    config, notes = read("method: {rank: 4}", "method.name=fedlc")
    assert config.method.name == "fedlc"
    assert "rank" in notes[0]


def test_a_key_nobody_knows_is_refused_with_another_member_as_well(problems: Problems) -> None:
    (line,) = problems("partition: {name: dirichlet, bta: 0.3}", "partition.name=iid")
    assert line.startswith("run.yaml: partition.bta: unknown key")


def test_a_foreign_key_given_with_the_new_member_is_refused(problems: Problems) -> None:
    (line,) = problems("partition: {name: dirichlet, beta: 0.3}", "partition.name=iid", "partition.beta=2")
    assert line.startswith("-s partition.beta: is no option of iid, but of dirichlet")


def test_an_unknown_new_member_is_refused(problems: Problems) -> None:
    assert problems("partition: {name: dirichlet, beta: 0.3}", "partition.name=idd") == [
        f"-s partition.name: no partitioner 'idd'; did you mean 'iid'? ({', '.join(plugins.members('partitioners'))}){OWN}"
    ]


def test_a_cohort_size_sets_the_files_fraction_aside_and_says_so(read: Load) -> None:
    config, notes = read("cohort: {fraction: 0.5}", "cohort.size=3")
    assert (config.cohort.size, config.cohort.fraction) == (3, None)
    assert notes == ["cohort.fraction of the file is set aside, since cohort.size was given"]


def test_a_cohort_fraction_sets_the_files_size_aside_and_says_so(read: Load) -> None:
    config, notes = read("cohort: {size: 3}", "cohort.fraction=0.5")
    assert (config.cohort.size, config.cohort.fraction) == (None, 0.5)
    assert notes == ["cohort.size of the file is set aside, since cohort.fraction was given"]


# Files that are no configuration


def test_a_missing_file_is_answered_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text("rounds: 1")
    with pytest.raises(UserError, match=r"quikstart.yaml: there is no such file; did you mean 'quickstart.yaml'\?$"):
        load(tmp_path / "quikstart.yaml")


def test_a_missing_folder_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no such file; give the path of one"):
        load(tmp_path / "nowhere" / "run.yaml")


def test_a_folder_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r": is a folder; give a YAML file in it$"):
        load(tmp_path)


def test_a_binary_file_is_no_configuration(tmp_path: Path) -> None:
    (tmp_path / "run.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(2**21))
    sentence = "the file is an HDF5 file; the configuration of a run is config.yaml beside it$"
    with pytest.raises(UserError, match=f"run.h5: is not valid YAML: {sentence}"):
        load(tmp_path / "run.h5")
    (tmp_path / "cat.yaml").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UserError, match=r"cat.yaml: is not valid YAML: the file is a PNG image$"):
        load(tmp_path / "cat.yaml")


def test_a_colon_without_a_blank_is_told(problems: Problems) -> None:
    (line,) = problems("client: {lr:1}")
    assert line == "run.yaml: client.lr:1: unknown key; write a blank after the colon"
    (line,) = problems("client:\n  lr: 1\nrounds:20\nseed: 1")
    assert "(a key needs a colon and a blank after it, as in 'rounds: 20')" in line


def test_invalid_yaml_is_told_with_its_line(problems: Problems) -> None:
    (line,) = problems("rounds: 1\nclient: {lr: 1")
    assert "run.yaml: is not valid YAML: " in line
    assert "line 2" in line


@pytest.mark.parametrize("overrides", [[], ["data.caption=2024-99-99"]], ids=["file", "override"])
def test_a_date_that_does_not_exist_is_the_users_mistake(problems: Problems, overrides: list[str]) -> None:
    """YAML 1.1 reads dates, and stumbles over this one; here it is a text."""
    assert problems("rounds: 1" if overrides else "rounds: 2024-99-99", *overrides)


@pytest.mark.parametrize("text", ["- rounds\n- 1", "rounds", ""], ids=["a list", "a text", "nothing"])
def test_a_file_must_hold_keys_and_values(problems: Problems, text: str) -> None:
    (line,) = problems(text)
    assert "run.yaml: must hold keys and values such as 'rounds: 10', but holds " in line


def test_a_key_that_stands_twice_is_refused(problems: Problems) -> None:
    (line,) = problems("rounds: 5\nrounds: 7\n")
    assert "key 'rounds' stands twice" in line


# A file on top of another


def layered(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


def test_a_file_builds_on_its_base(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    layered(tmp_path, base="rounds: 7\nclient: {lr: 0.1, epochs: 3}\nmethod: {name: flora, rank: 5}")
    layered(tmp_path / "more", middle="base: ../base.yaml\nclient: {lr: 0.2}", top="base: middle.yaml\nseed: 3")
    config, notes = load(tmp_path / "more" / "top.yaml", ["client.epochs=4"])
    assert (config.seed, config.rounds, config.client.lr, config.client.epochs, config.method.rank) == (3, 7, 0.2, 4, 5)
    assert notes == []
    assert "base" not in config.to_yaml()


def test_a_base_may_be_a_bundled_name_in_any_folder(tmp_path: Path) -> None:
    folder = tmp_path / "sub"
    folder.mkdir()
    layered(folder, mine="base: quickstart\nrounds: 3")
    config, _ = load(folder / "mine.yaml")
    assert (config.rounds, config.partition.name) == (3, "dirichlet")
    (folder / "quickstart").write_text("rounds: 9")  # a file beside it comes first
    layered(folder, mine="base: quickstart")
    assert load(folder / "mine.yaml")[0].rounds == 9


def test_another_member_than_the_bases_drops_its_keys(tmp_path: Path) -> None:
    layered(tmp_path, base="partition: {name: dirichlet, num_clients: 7, beta: 0.3}", top="base: base.yaml\npartition: {name: iid}")
    config, _ = load(tmp_path / "top.yaml")
    assert config.partition.model_dump() == {"name": "iid", "num_clients": 7, "examples_per_client": None}


def test_a_size_in_place_of_the_bases_fraction(tmp_path: Path) -> None:
    layered(tmp_path, base="cohort: {fraction: 0.5}", top="base: base.yaml\ncohort: {size: 4}")
    config, _ = load(tmp_path / "top.yaml")
    assert (config.cohort.size, config.cohort.fraction) == (4, None)


def test_a_mistake_is_told_of_the_file_it_stands_in(tmp_path: Path) -> None:
    layered(tmp_path, base="rounds: -1\nclient: {lrr: 1}", top="base: base.yaml\nseed: -2\nclient: {epochs: 0}")
    with pytest.raises(UserError) as error:
        load(tmp_path / "top.yaml", ["client.eps=0"])
    starts = [" ".join(line.split()[:2]) for line in str(error.value).splitlines()]
    expected = ["top.yaml: seed:", "base.yaml: rounds:", "top.yaml: client.epochs:", "base.yaml: client.lrr:", "-s client.eps:"]
    assert sorted(starts) == sorted(expected)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("base: [a, b]", "top.yaml: base: must be the path of one YAML file, not ['a', 'b']"),
        ("base: top.yaml", "top.yaml: base: top.yaml is built on this file itself; take one of the two lines out"),
        ("base: other.yaml", "other.yaml: base: top.yaml is built on this file itself; take one of the two lines out"),
    ],
)
def test_a_base_that_cannot_be(tmp_path: Path, text: str, sentence: str) -> None:
    layered(tmp_path, top=text, other="base: top.yaml")
    with pytest.raises(UserError) as error:
        load(tmp_path / "top.yaml")
    assert str(error.value) == sentence


def test_a_base_that_is_not_there(tmp_path: Path) -> None:
    layered(tmp_path, top="base: bas.yaml", base="rounds: 1")
    with pytest.raises(UserError, match=r"bas.yaml: there is no such file; did you mean 'base.yaml'\?"):
        load(tmp_path / "top.yaml")


def test_random_weights_are_announced(read: Load) -> None:
    _, notes = read("model: {name: ViT-B-32, pretrained: none}")
    assert notes == ["model.pretrained is 'none': RANDOM weights, good for measuring speed; accuracies mean nothing"]
