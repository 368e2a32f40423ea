"""What many tests need: a small CLIP with random weights, the bundled one, and ways to start ranks."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # tests share the cores: threads that spin would take them from others
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # and a thread that waits for another one's core gains nothing
    cores = len(os.sched_getaffinity(0)) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores)))
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.pop("COLUMNS", None)  # which tells programs that they have a terminal of this width

import flora_hpc  # noqa: F401 -- before torch, as in the program

import open_clip  # isort: skip
import torch  # isort: skip

from typer.testing import CliRunner

from flora_hpc.cli import app
from flora_hpc.clip.attention import unfuse
from flora_hpc.clip.load import Clip
from flora_hpc.clip.precision import NATIVE_BF16, processor_flags
from flora_hpc.data.holdings import Partition
from flora_hpc.errors import UserError
from flora_hpc.methods._method import Setting
from tests import forks

ROOT = Path(__file__).parent.parent
NEEDS_BF16 = pytest.mark.skipif(not NATIVE_BF16 & processor_flags(), reason="this processor does not multiply in bfloat16")
WIDTH, VOCABULARY, CONTEXT, END = 16, 40, 12, 39


def small_model(seed: int = 0, dtype: torch.dtype = torch.float32, quick_gelu: bool = False) -> open_clip.CLIP:
    """A CLIP of 2 x 2 blocks, 16 wide, with weights large enough that every part of it matters."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(
            embed_dim=8,
            vision_cfg={"image_size": 8, "layers": 2, "width": WIDTH, "head_width": 8, "patch_size": 4},
            text_cfg={"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": WIDTH, "heads": 2, "layers": 2},
            quick_gelu=quick_gelu,
        )
        for parameter in model.parameters():
            if parameter.ndim:
                parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return model.to(dtype).eval().requires_grad_(False)


def setting(model: open_clip.CLIP, captions: torch.Tensor, known: dict[str, torch.Tensor] | None = None) -> Setting:
    """A setting of three clients with 8, 5 and 2 examples on a small model.

    Its tokenizer knows the captions, whose texts are "caption 0" and so on, and lists of texts by their first one in `known`.
    """

    def tokenize(texts: list[str]) -> torch.Tensor:
        return ({"caption 0": captions} | (known or {}))[texts[0]]

    clip = Clip(unfuse(model), lambda image: image, tokenize, "small")
    names, texts = (tuple(f"{word} {i}" for i in range(len(captions))) for word in ("name", "caption"))
    return Setting(clip, names, texts, Partition(np.arange(15), np.array([0, 8, 13, 15])), np.arange(15) % len(captions))


STARTS_PROCESSES = {"python", "flora", "mpiexec"}  # fixtures
SLOW = {  # modules that start processes without a fixture, play runs, or try very many cases
    "test_against", "test_api", "test_backends", "test_bad_input", "test_claim", "test_comm", "test_counters", "test_data",
    "test_data_in_runs", "test_decode", "test_disk_full", "test_embed", "test_environment", "test_evaluate", "test_export",
    "test_extras", "test_failures", "test_features", "test_forks", "test_fuzz_config", "test_fuzz_data", "test_fuzz_folders",
    "test_groups", "test_hdf5file", "test_library", "test_limit", "test_list", "test_log", "test_many_clients", "test_meeting",
    "test_memory", "test_methods", "test_mix", "test_models", "test_more_rounds", "test_oracle", "test_other_data",
    "test_own_parts", "test_page", "test_plan_and_doctor", "test_readme", "test_report", "test_requeue", "test_resume",
    "test_round", "test_rows", "test_run", "test_scale", "test_screen", "test_show", "test_slurm", "test_split", "test_steady",
    "test_loose", "test_step", "test_superblock", "test_track", "test_trackers", "test_watch", "test_watchdog", "test_weights",
    "test_world_sizes", "test_algorithm_rounds", "test_personal", "test_study_watch", "test_study_shards", "test_bundled",
    "test_measure", "test_recipes", "test_all", "test_on_device", "test_heldout", "test_command", "test_samples",
}  # fmt: skip


LONG = (  # files that take more than some ten seconds; those that start many ranks alternate with those that start none
    *(
        "test_algorithms_in_runs",
        "test_measure",
        "test_library",
        "test_world_sizes",
        "test_groups",
        "test_tutorials",
        "test_demo",
        "test_export",
        "test_disk_full",
    ),
    *("test_failures", "test_resume", "test_own_parts", "test_api", "test_data_in_runs", "test_bad_input", "test_scale"),
    *("test_backends", "test_extras", "test_embed", "test_report", "test_memory", "test_personal", "test_weights"),
)


MOST_OF_ALL = 6000  # tests: more than that are all of them
REPEATED = (  # cases of a promise that other cases keep, too: marked long, as are functions that say so themselves
    *("test_failures.py::test_an_error_on_one_rank_ends_the_job[0-torchrun]", "is_named[1]", "ends_the_job[1]"),
    *("is_late[options-1]", "is_late[usage-1]", "is_late[backend-1]", "store_is_not_there[1]"),
    *("test_a_disk_fills_up[alone-", "becomes_read_only[alone]", "width_that_is_asked_for[2.0]", "width_that_is_asked_for[7.0]"),
    *("same_bytes_each_time[pdf]", "goes_on[tested during the next round]", "predicts_the_peak_within_15_percent"),
    *("kept_and_read_back[png]", "had_them[0]", "gives_the_same_numbers[ditto]", "goes_on[kept momentum]"),
    *("ends_the_job[an error between runs]", "ends_the_job[an exit in a callback]", "beat_zero_shot_too[fedfft"),
    *("accuracy_again[fedfft]", "accuracy_again[fedvmlc]", "can_be_typed[privacy-and-bytes]", "end_the_others[1]"),
    *("test_against.py::test_both_sides_compute_the_same", "test_the_parts_of_a_step_add_up_to_it", "seen_in_the_gradients"),
    *("test_a_flipped_bit_is_told[1:received:2", "test_a_mistake_in_one_part_ends_the_other_parts", "test_log.py::test_the_table"),
    *("test_scale.py::test_one_rank_under_torchrun", "test_a_result_each_and_what_is_there", "fails_ends_the_measurement"),
    *("test_comm.py::test_under_torchrun_with_gloo", "test_step.py::test_the_table", "test_a_group_is_as_large_as_in_a_run"),
    *("test_a_lost_rank_costs_its_point", "test_a_corrected_part_lets", "test_more_rounds_extend_finished", "lone_run[alone]"),
    *("merged_export[", "ends_the_job[a mistake on all"),
    *("test_a_script_on_two_ranks[torchrun]", "share_the_pages_of_the_weights", "what_was_put_off_is_there", "[420-"),
    *("test_parts_of_an_installed_package_need", "test_an_adapter_of_before_is", "test_a_shard_plays_every_nth_point_while"),
    *("is_built_with_timm", "spin_as_often_as_that", "test_figures_for_a_paper[pdf"),
    *("lone_run[2 ranks and 1]", "are_kept_apart[2]", "lists_it[feda", "lists_it[fedc", "lists_it[fedp", "lists_it[zero"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files first, since one that begins last leaves the other processes idle; and mark quick tests.

    A file is played by one process. `pytest -m quick`: tests that start no process and take little.
    """
    if len(items) > MOST_OF_ALL:
        assert [case for case in REPEATED if not any(case in item.nodeid for item in items)] == [], "no test has this name"
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
    for item in items:
        if any(case in item.nodeid for case in REPEATED):
            item.add_marker(pytest.mark.long)
        module, fixtures = item.path.stem, getattr(item, "fixturenames", ())
        marked = any(item.get_closest_marker(name) for name in ("mpi", "slurm", "gpu", "browser"))
        if module not in SLOW and not marked and not STARTS_PROCESSES & set(fixtures):
            item.add_marker(pytest.mark.quick)


@pytest.fixture(scope="session", autouse=True)
def own_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Features that tests compute stay in a folder of theirs."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLORA_HPC_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """A test leaves the environment as it was, also where a library sets a variable: a fork needs the one that its server had."""
    before = dict(os.environ)
    yield
    now = {"PYTEST_CURRENT_TEST": os.environ["PYTEST_CURRENT_TEST"]}
    wanted = before | now
    if os.environ != wanted:
        os.environ.clear()
        os.environ.update(wanted)


@pytest.fixture
def split_model() -> open_clip.CLIP:
    return unfuse(small_model(dtype=torch.float64))


@pytest.fixture
def captions() -> torch.Tensor:
    """Five captions that share beginnings in different ways; token 39 ends a caption, 0 pads it. The last repeats the first."""
    rows = [[1, 5, 6, END], [1, 5, 7, 8, END], [1, 5, 6, 9, END], [1, 2, END], [1, 5, 6, END]]
    return torch.tensor([row + [0] * (CONTEXT - len(row)) for row in rows])


@pytest.fixture(scope="session")
def mpiexec() -> list[str]:
    """The command that starts MPI ranks: the wheel's, beside Python, or the system's."""
    found = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
    if found is None:
        pytest.skip("no mpiexec")
    pytest.importorskip("mpi4py")
    return [found]


@pytest.fixture(scope="session")
def python() -> Iterator[list[str]]:
    """What to put before `-m flora_hpc` or a script, in place of Python: a start that costs no imports. See tests/forks."""
    with forks.served():
        yield forks.PYTHON


@pytest.fixture(scope="session")
def flora(python: list[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `[launcher...] flora-hpc arguments`; with `afresh`, as users do, in a Python that imports everything again."""

    def start(
        *arguments: object, under: list[str] | None = None, timeout: float = 240, afresh: bool = False, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        command = [*(under or []), *([sys.executable] if afresh else python), "-m", "flora_hpc", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=ROOT, env=os.environ | environment)

    return start


@pytest.fixture
def invoke() -> Callable[..., str]:
    """Run a command in this process, which saves the seconds of imports: what it printed."""

    def call(*arguments: object) -> str:
        result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    return call


def refusal(*arguments: object) -> str:
    """What a command that is refused, in this process, says."""
    with pytest.raises(UserError) as error:
        CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    return str(error.value)


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """Black and white squares, of which no model knows anything; ten classes, as the digits."""
    path = tmp_path / "squares.h5"
    with h5py.File(path, "w") as file:
        for part in ("train", "test"):
            file[f"{part}/images"] = np.repeat(np.arange(10, dtype=np.uint8) * 25, 16 * 16 * 3).reshape(10, 16, 16, 3)
            file[f"{part}/labels"] = np.arange(10)
        file.attrs.update(class_names=json.dumps([f"shade {i}" for i in range(10)]), encoding="raw", name="squares")
    return path
