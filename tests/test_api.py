"""The library: several runs in one process give the bits of lone runs, and leave the process and the model as they were."""

import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import flora_hpc
from flora_hpc import configfile, experiment, identity, plugins, setup
from flora_hpc.clip import identity as model_identity
from flora_hpc.comm.backends.serial import Serial
from flora_hpc.comm.launch import Launch
from flora_hpc.errors import StoppedError, UserError
from flora_hpc.shared import Shared
from tests import own_parts
from tests.conftest import ROOT
from tests.same_runs import adapter, assert_same

Invoke = Callable[..., str]
QUICKSTART = ROOT / "configs/quickstart.yaml"
SHORT: dict[str, Any] = {"rounds": 2, "partition__num_clients": 3, "client__epochs": 1}


@pytest.fixture
def short(squares: Path) -> dict[str, Any]:
    return SHORT | {"data": {"name": "hdf5", "path": str(squares)}}


def words(squares: Path, out: Path, *more: str) -> list[str]:
    settings = ("rounds=2", "partition.num_clients=3", "client.epochs=1", f"data={{name: hdf5, path: {squares}}}", *more)
    return ["run", str(QUICKSTART), "--out", str(out), *(word for setting in settings for word in ("-s", setting))]


# --- several runs in one process


RUNS: list[tuple[dict[str, Any], list[str]]] = [
    ({"seed": 0}, ["seed=0"]),
    ({"seed": 1}, ["seed=1"]),
    ({"method": {"name": "fedprompt"}}, ["method={name: fedprompt}"]),
    ({"method__targets": ["image.out_proj"]}, ["method.targets=[image.out_proj]"]),
    ({"method": {"name": "fedtext"}}, ["method={name: fedtext}"]),
    ({"seed": 0}, ["seed=0"]),
]


def test_runs_that_share_model_data_and_features_have_the_bits_of_lone_runs(
    squares: Path, tmp_path: Path, short: dict[str, Any], invoke: Invoke
) -> None:
    """Towers, text weights and prompts are trained in between; none of it reaches the next run."""
    shared = Shared()
    for number, (overrides, settings) in enumerate(RUNS):
        together, alone = tmp_path / f"{number}", tmp_path / f"{number}-alone"
        run = flora_hpc.run(QUICKSTART, out=together, shared=shared, **short | overrides)
        assert run.status == "finished"
        invoke(*words(squares, alone, *settings))
        assert_same(together, alone)
    assert flora_hpc.open_run(tmp_path / "1").attributes["num_features_computed"] == 0


CHANGES = [{}, {"method__targets": ["image.out_proj"]}, {"features__compute": "bf16"}, {"model__precision": "bf16"}]


@pytest.mark.parametrize("change", CHANGES)
def test_a_shared_model_is_what_it_was_after_a_run(tmp_path: Path, short: dict[str, Any], change: dict[str, Any]) -> None:
    """Its layers, their settings and all tensors, the image tower included."""
    shared = Shared()
    config = flora_hpc.load_config(QUICKSTART, **short | change)
    try:
        site = setup.find_site(config, Serial(), Launch())
    except UserError as error:
        pytest.skip(str(error))
    experiment.own_clip(config, site.device, shared)
    clip = shared._entries["model"][1]
    before, modules = model_identity.module(clip.model), [type(module) for module in clip.model.modules()]
    flora_hpc.run(config, out=tmp_path / "run", shared=shared)
    assert shared._entries["model"][1] is clip
    assert [type(module) for module in clip.model.modules()] == modules
    assert model_identity.module(clip.model) == before


def test_shared_keeps_one_of_a_kind_and_makes_what_is_not_kept() -> None:
    shared, made = Shared(), []
    for key in (1, 1, 2, 1):
        assert shared.recall("model", key, lambda key=key: made.append(key) or -key) == -key  # type: ignore[misc]
    assert made == [1, 2, 1]


# --- what a call takes and gives


def test_the_same_configuration_from_a_file_a_mapping_and_a_config() -> None:
    config = flora_hpc.load_config(QUICKSTART, rounds=3, client__lr=0.5)
    assert config == configfile.load(QUICKSTART, ["rounds=3", "client.lr=0.5"])[0]
    assert flora_hpc.load_config(str(QUICKSTART), **{"rounds": 3, "client.lr": 0.5}) == config
    assert flora_hpc.load_config(config) == config
    tree = config.model_dump(mode="json")
    assert flora_hpc.load_config(tree) == config
    assert flora_hpc.load_config(tree | {"rounds": 5}, rounds=3) == config
    assert tree == config.model_dump(mode="json"), "what was handed over is not changed"


@pytest.mark.parametrize(
    ("source", "overrides", "message"),
    [
        ("absent.yaml", {}, "absent.yaml: there is no such file"),
        ({"rounds": "ten"}, {}, "config: rounds: must be a whole number, not 'ten'"),
        ({"client": {"lrr": 1}}, {}, "config: client.lrr: unknown key; did you mean client.lr?"),
        (QUICKSTART, {"client__lrr": 1}, "override client.lrr: unknown key; did you mean client.lr?"),
        (QUICKSTART, {"rounds__x": 1}, "override rounds.x: 'rounds' holds a value, not keys of its own"),
        (7, {}, "config: must be a path, a mapping or a Config, not int"),
    ],
)
def test_a_mistake_in_a_configuration_names_where_it_is(source: Any, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        flora_hpc.load_config(source, **overrides)
    assert str(error.value).startswith(message)


def test_what_an_override_sets_aside_is_a_warning() -> None:
    with pytest.warns(UserWarning, match="method.name=fedca: dropped rank"):
        flora_hpc.load_config(QUICKSTART, method__name="fedca")


def test_each_round_is_told_with_the_columns_of_its_row(tmp_path: Path, short: dict[str, Any]) -> None:
    rows: list[dict[str, Any]] = []
    run = flora_hpc.run(QUICKSTART, out=tmp_path / "run", on_round=rows.append, **short)
    assert [row["round"] for row in rows] == [0, 1, 2]
    assert [row["test_accuracy"] for row in rows] == run.rounds["test_accuracy"].tolist()
    assert {type(value) for row in rows for value in row.values()} <= {int, float}


def test_the_seconds_of_the_start_are_those_of_its_parts(tmp_path: Path, short: dict[str, Any]) -> None:
    run = flora_hpc.run(QUICKSTART, out=tmp_path / "run", **short | {"rounds": 1})
    parts = [run.attributes[f"setup_{part}_seconds"] for part in ("start", "build", "features", "state")]
    assert min(parts) > 0
    assert sum(parts) == pytest.approx(run.attributes["setup_seconds"])


def test_what_on_round_raises_ends_the_run(tmp_path: Path, short: dict[str, Any]) -> None:
    def enough(row: dict[str, Any]) -> None:
        if row["round"] == 1:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        flora_hpc.run(QUICKSTART, out=tmp_path / "run", on_round=enough, **short)
    assert flora_hpc.open_run(tmp_path / "run").status == "failed"


def test_a_finished_run_is_given_more_rounds_and_a_used_directory_is_refused(tmp_path: Path, short: dict[str, Any]) -> None:
    flora_hpc.run(QUICKSTART, out=tmp_path / "run", **short | {"rounds": 1})
    with pytest.raises(UserError, match=r"already holds a run"):
        flora_hpc.run(QUICKSTART, out=tmp_path / "run", **short)
    with pytest.raises(UserError, match=r"resume=True: which run\? name its directory with out"):
        flora_hpc.run(QUICKSTART, resume=True, **short)
    assert len(flora_hpc.run(QUICKSTART, out=tmp_path / "run", resume=True, **short).rounds) == 3
    finished = flora_hpc.run(QUICKSTART, out=tmp_path / "run", resume=True, **short)
    assert finished.status == "finished"
    flora_hpc.run(QUICKSTART, out=tmp_path / "whole", **short)
    assert adapter(tmp_path / "run") == adapter(tmp_path / "whole")


def test_two_runs_of_one_second_have_directories_of_their_own(
    tmp_path: Path, short: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda *form: "20000101-000000")
    paths = [flora_hpc.run(QUICKSTART, **short | {"rounds": 0}).path.parent.name for _ in range(2)]
    assert paths == ["quickstart-20000101-000000", "quickstart-20000101-000000-2"]


# --- the process that goes on after it


def test_threads_and_signals_are_what_they_were(tmp_path: Path, short: dict[str, Any]) -> None:
    def own_handler(number: int, frame: object) -> None:
        """A handler of the user's own."""

    seen: list[Any] = []
    before = signal.signal(signal.SIGUSR1, own_handler), torch.get_num_threads()
    try:
        torch.set_num_threads(1)

        def look(row: dict[str, Any]) -> None:
            seen.append(signal.getsignal(signal.SIGUSR1) is own_handler)

        flora_hpc.run(QUICKSTART, out=tmp_path / "a", on_round=look, **short)
        flora_hpc.run(QUICKSTART, out=tmp_path / "b", on_round=look, signals=False, **short)
        assert seen == [False] * 3 + [True] * 3
        assert signal.getsignal(signal.SIGUSR1) is own_handler
        assert torch.get_num_threads() == 1
    finally:
        signal.signal(signal.SIGUSR1, before[0])
        torch.set_num_threads(before[1])


def test_a_signal_stops_the_run_and_not_the_process(tmp_path: Path, short: dict[str, Any]) -> None:
    handler = signal.getsignal(signal.SIGTERM)

    def stop(row: dict[str, Any]) -> None:
        if row["round"] == 1:
            signal.raise_signal(signal.SIGTERM) if threading.current_thread() is threading.main_thread() else signal.pthread_kill(
                threading.main_thread().ident or 0, signal.SIGTERM
            )

    long = short | {"rounds": 50}
    with pytest.raises(StoppedError, match="a signal stopped the run after round"):
        flora_hpc.run(QUICKSTART, out=tmp_path / "run", on_round=stop, **long)
    assert signal.getsignal(signal.SIGTERM) == handler
    assert flora_hpc.open_run(tmp_path / "run").status == "stopped"


SCRIPT = """
import sys, flora_hpc
shared = flora_hpc.Shared()
for seed in (0, 1):
    run = flora_hpc.run(sys.argv[1], out=f"{sys.argv[2]}/{seed}", seed=seed, shared=shared, rounds=2, partition__num_clients=3,
                        client__epochs=1, data={"name": "hdf5", "path": sys.argv[3]})
    sys.stdout.write(f"{run.status} {len(run.rounds)}\\n")
    sys.stdout.flush()
"""


@pytest.mark.mpi
@pytest.mark.parametrize("launcher", ["mpiexec", "torchrun"])
def test_a_script_on_two_ranks(
    launcher: str, squares: Path, tmp_path: Path, mpiexec: list[str], python: list[str], short: dict[str, Any]
) -> None:
    from tests import forks

    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    under = [*mpiexec, "-n", "2", *python] if launcher == "mpiexec" else forks.torchrun(2)
    command = [*under, str(script), str(QUICKSTART), str(tmp_path), str(squares)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["finished 3"] * 4, "every rank is handed the run"
    for seed in (0, 1):
        flora_hpc.run(QUICKSTART, out=tmp_path / f"alone-{seed}", **short | {"seed": seed})
        assert adapter(tmp_path / str(seed)) == adapter(tmp_path / f"alone-{seed}")


# --- what is public


def test_all_public_names_are_there_and_documented() -> None:
    for name in flora_hpc.__all__:
        value = getattr(flora_hpc, name)
        assert isinstance(value, str) or value.__doc__, name
    assert dir(flora_hpc) == sorted(flora_hpc.__all__)
    with pytest.raises(AttributeError, match="module 'flora_hpc' has no attribute 'runs'"):
        flora_hpc.runs  # noqa: B018


def test_the_identity_of_a_run_without_own_parts_names_none(short: dict[str, Any]) -> None:
    assert identity.of_parts(flora_hpc.load_config(QUICKSTART, **short)) == {}


def test_a_plan_tells_in_numbers_what_the_command_prints(short: dict[str, Any], invoke: Invoke) -> None:
    planned = flora_hpc.plan(QUICKSTART, ranks=2, **short)
    assert [sum(map(len, groups)) for groups in planned.groups] == [2, 1]
    assert planned.payload_bytes == 4 * planned.num_params == 16384
    assert planned.uplink_bytes == 3 * 16384
    assert planned.memory_bytes["weights"] == 4 * planned.model_numbers
    with pytest.raises(UserError, match="plan: ranks=0, gpus_per_node=0: give at least 1 rank, and 0 GPUs or more"):
        flora_hpc.plan(QUICKSTART, ranks=0)


def test_a_single_file_or_tracker_may_be_a_text_and_a_folder_may_be_at_home(
    tmp_path: Path, short: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(plugins, "_used", {})
    parts = own_parts.write(tmp_path / "parts")
    with pytest.raises(UserError, match=r"no algorithm 'my_fedavgm'"):
        flora_hpc.run(QUICKSTART, out="~/a", **short, algorithm={"name": "my_fedavgm"})
    run = flora_hpc.run(
        QUICKSTART, out="~/a", track="csv", plugin_files=str(parts / "my_fedavgm.py"), **short, algorithm={"name": "my_fedavgm"}
    )
    assert run.path == tmp_path / "a" / "run.h5"
    assert (tmp_path / "a" / "rounds.csv").is_file()
    assert plugins._used == {}, "files are named for one call"
    with pytest.raises(UserError, match=r"was run with algorithm my_fedavgm from files of its user"):
        flora_hpc.run(tmp_path / "a" / "config.yaml", out="~/a", resume=True)


def test_a_dataset_whose_code_changed_is_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, file = Shared(), own_parts.write(tmp_path / "parts") / "my_shades.py"
    few: dict[str, Any] = {"data": {"name": "my_shades"}, "partition__num_clients": 2, "rounds": 1}
    losses = []
    for number, dark in enumerate((10, 90)):
        monkeypatch.setattr(plugins, "_used", {})
        file.write_text(file.read_text().replace("DARK = 10", f"DARK = {dark}"))
        for name in ("shared", "alone"):
            used = shared if name == "shared" else None
            flora_hpc.run(QUICKSTART, out=tmp_path / f"{name}-{number}", plugin_files=file, shared=used, **few)
        assert_same(tmp_path / f"shared-{number}", tmp_path / f"alone-{number}")
        losses.append(flora_hpc.open_run(tmp_path / f"alone-{number}").rounds["train_loss"].iloc[-1])
    assert losses[0] != losses[1]


ENDS = {  # what the script does before its second run, and what is said
    "an error between runs": ("if rank == 1: raise ZeroDivisionError('between runs')", "between runs"),
    "an exit in a callback": ("ways['on_round'] = lambda row: sys.exit(3)", ""),
    "a mistake on one rank": ("if rank == 1: ways['rounds'] = 'many'", "rounds: must be a whole number"),
    "a mistake on all ranks": ("ways['client__lrr'] = 1", "client.lrr: unknown key; did you mean client.lr?"),
}


@pytest.mark.mpi
@pytest.mark.parametrize("end", ENDS)
def test_what_ends_a_script_on_one_rank_ends_the_job(
    end: str, squares: Path, tmp_path: Path, mpiexec: list[str], python: list[str]
) -> None:
    script = tmp_path / "script.py"
    lines = SCRIPT.replace("for seed in", "ways = {}\nfor seed in").replace("rounds=2,", "**({'rounds': 2} | ways),")
    after = f"    import os\n    rank = int(os.environ['PMI_RANK'])\n    {ENDS[end][0]}\n"
    script.write_text(lines + after)
    command = [*mpiexec, "-n", "2", *python, str(script), str(QUICKSTART), str(tmp_path), str(squares)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=ROOT)
    assert done.returncode != 0
    expected = {
        "an error between runs": "between runs",
        "an exit in a callback": "",
        "a mistake on one rank": "rounds: must be a whole",
    }
    assert expected.get(end, "client.lrr: unknown key; did you mean client.lr?") in done.stderr
    assert done.stdout.count("finished 3") == 2, "the first run"
