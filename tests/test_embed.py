"""Features are computed once, by all ranks, and never read wrongly, whenever a job is killed."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flora_hpc import embed
from flora_hpc.clip import identity
from flora_hpc.clip.load import Clip, load
from flora_hpc.comm.backends.serial import Serial
from flora_hpc.config import FeaturesConfig, ModelConfig
from flora_hpc.data import features
from flora_hpc.data import store as stores
from flora_hpc.data.images import Images, Raw
from flora_hpc.errors import UserError
from flora_hpc.records import hdf5file
from tests.conftest import NEEDS_BF16, ROOT

NUM_IMAGES = 600  # three blocks
KILLS = int(os.environ.get("FLORA_HPC_KILLS", "2"))
Invoke = Callable[..., str]


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load(ModelConfig(), 0, torch.device("cpu"))


@pytest.fixture
def work(clip: Clip, tmp_path: Path) -> embed.Work:
    return embed.Work(clip, FeaturesConfig(store=str(tmp_path / "store")), Serial(), torch.device("cpu"), 1)


def noise(seed: int = 0, num_images: int = NUM_IMAGES, stamp: Callable[[], str] | None = None) -> Images:
    pixels = np.random.default_rng(seed).integers(0, 256, (num_images, 8, 8, 3), np.uint8)
    return Images(
        np.zeros(num_images, np.int64), lambda rows: [pixels[row] for row in rows], lambda row: f"noise {row}", stamp=stamp
    )


def test_a_second_time_nothing_is_computed(work: embed.Work) -> None:
    first, second = (embed.embed(noise(), "noise", work) for _ in range(2))
    assert (first.num_computed, second.num_computed) == (NUM_IMAGES, 0)
    assert first.place == second.place
    assert second.values.equal(first.values)


def test_stored_features_are_those_that_are_computed(work: embed.Work) -> None:
    kept = embed.embed(noise(), "noise", work)
    fresh = embed.embed(noise(), "noise", replace(work, config=FeaturesConfig(store="none")))
    assert (fresh.num_computed, fresh.place) == (NUM_IMAGES, "memory")
    assert kept.values.equal(fresh.values)
    pixels = torch.stack([work.clip.preprocess(Image.fromarray(image)) for image in noise().raw([599])])
    torch.testing.assert_close(kept.values[599:], work.clip.model.encode_image(pixels), rtol=1e-4, atol=1e-5)


def test_half_the_size(work: embed.Work) -> None:
    whole = embed.embed(noise(), "noise", work)
    half = embed.embed(noise(), "noise", replace(work, config=work.config.model_copy(update={"precision": "bf16"})))
    assert half.num_computed == NUM_IMAGES
    assert half.values.dtype == torch.bfloat16
    assert half.values.equal(whole.values.bfloat16())


@NEEDS_BF16
@pytest.mark.parametrize("num_threads", [1, 2])
def test_an_image_tower_in_bf16_gives_other_features_which_are_kept_apart(work: embed.Work, num_threads: int) -> None:
    """Features in bf16 are close to fp32, and equal on one and two threads. The tower is unchanged afterwards."""
    whole = embed.embed(noise(), "noise", work)
    low = replace(work, config=work.config.model_copy(update={"compute": "bf16"}))
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    embedded = embed.embed(noise(), "noise", low)
    torch.set_num_threads(before)
    assert (embedded.num_computed, embedded.facts["computed in"]) == (NUM_IMAGES, "bf16")
    assert embedded.values.dtype == torch.float32
    error = float((embedded.values - whole.values).norm() / whole.values.norm())
    assert 1e-4 < error < 0.02
    assert embed.embed(noise(), "noise", low).num_computed == 0
    fresh = embed.embed(noise(), "noise", replace(low, config=low.config.model_copy(update={"store": "none"})))
    assert fresh.values.equal(embedded.values)
    assert embed.embed(noise(), "noise", replace(work, config=FeaturesConfig(store="none"))).values.equal(whole.values)


def test_another_image_another_order_or_another_number_is_computed(work: embed.Work) -> None:
    embed.embed(noise(), "noise", work)
    assert embed.embed(noise(seed=1), "noise", work).num_computed == NUM_IMAGES
    assert embed.embed(noise().take(np.arange(NUM_IMAGES)[::-1]), "noise", work).num_computed == NUM_IMAGES
    assert embed.embed(noise().take(np.arange(599)), "noise", work).num_computed == 599
    assert embed.embed(noise(), "the same by another name", work).num_computed == 0


def test_another_model_or_preprocessing_is_another_tower(clip: Clip) -> None:
    other = load(ModelConfig(), 0, torch.device("cpu"))
    assert identity.image_tower(other) == identity.image_tower(clip)
    towers = {identity.image_tower(clip)}
    other.model.visual.preprocess_cfg = {**other.model.visual.preprocess_cfg, "interpolation": "nearest"}
    towers.add(identity.image_tower(other))
    other.model.visual.ln_post.eps *= 2
    towers.add(identity.image_tower(other))
    other.model.visual.transformer.resblocks[0].mlp.gelu = torch.nn.GELU("tanh")
    towers.add(identity.image_tower(other))
    with torch.no_grad():
        next(other.model.visual.parameters()).view(-1)[0] += 1e-3
    towers.add(identity.image_tower(other))
    other.model.token_embedding.weight = torch.nn.Parameter(torch.zeros(2, 2))  # of the other tower
    towers.add(identity.image_tower(other))
    assert len(towers) == 5


def test_what_an_interrupted_job_computed_is_not_computed_again(work: embed.Work) -> None:
    first = embed.embed(noise(), "noise", work)
    key, store = Path(first.place).stem, embed.open_store(work)
    assert store is not None
    values = first.values.clone()
    Path(first.place).unlink()
    store.add_block(key, 1, values[256:512], {})
    second = embed.embed(noise(), "noise", work)
    assert second.num_computed == NUM_IMAGES - 256
    assert second.values.equal(values)


def test_progress_ends_with_all_images(work: embed.Work) -> None:
    for store in (work.config.store, "none"):
        steps: list[tuple[int, int]] = []
        work = replace(work, config=FeaturesConfig(store=store), progress=lambda *step, steps=steps: steps.append(step))
        embed.embed(noise(), "noise", work)
        assert steps == [(256, 600), (512, 600), (600, 600)]


# --- which images these are


def test_files_that_were_not_written_meanwhile_are_not_read_again(work: embed.Work) -> None:
    reads = []
    images = noise(stamp=lambda: "monday")
    counted = replace(images, raw=lambda rows: reads.append(rows) or images.raw(rows))
    store = stores.Store(Path(work.config.store))
    first = embed.digest_of(counted, store, work)
    assert len(reads) == 3
    assert embed.digest_of(counted, store, work) == first
    assert len(reads) == 3
    embed.digest_of(replace(counted, stamp=lambda: "tuesday"), store, work)
    assert len(reads) == 6


def test_images_without_files_are_read_every_time(work: embed.Work) -> None:
    store = stores.Store(Path(work.config.store))
    one, other = (embed.digest_of(noise(seed), store, work) for seed in (0, 1))
    assert one != other
    assert not (store.folder / "images").exists()


class Ranks:
    """Communicators of ranks that are threads of this process."""

    def __init__(self, size: int) -> None:
        self.size, self._barrier, self._data = size, threading.Barrier(size, timeout=60), [b""] * size

    def run(self, work: Callable[[Any], Any]) -> list[Any]:
        """Run `work` on every rank: the result of each, or its UserError."""

        def one(rank: int) -> Any:
            comm: Any = SimpleNamespace(
                rank=rank, size=self.size, name="threads", allgather=lambda data: self._allgather(rank, data)
            )
            try:
                return work(comm)
            except UserError as error:
                return error

        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(one, range(self.size)))

    def _allgather(self, rank: int, data: bytes) -> list[bytes]:
        self._data[rank] = data
        self._barrier.wait()
        gathered = list(self._data)
        self._barrier.wait()
        return gathered


def on_nodes(work: embed.Work, *images: Images) -> list[Any]:
    """`digest_of` on one rank for each of `images`, each rank on its own node."""
    store = stores.Store(Path(work.config.store))
    return Ranks(len(images)).run(lambda comm: embed.digest_of(images[comm.rank], store, replace(work, comm=comm)))


def test_ranks_of_one_file_system_share_the_reading(work: embed.Work) -> None:
    reads: list[int] = []
    images = noise(stamp=lambda: "monday")
    counted = replace(images, raw=lambda rows: reads.append(rows[0]) or images.raw(rows))
    alone = embed.digest_of(noise(), stores.Store(Path(work.config.store)), work)
    assert on_nodes(work, counted, counted) == [alone, alone]
    assert sorted(reads) == [0, 256, 512], "each block once"


def test_nodes_with_copies_of_their_own_each_read_theirs(work: embed.Work) -> None:
    """The times of the files differ, so the bytes may differ, too."""
    first, second = noise(stamp=lambda: "here"), noise(stamp=lambda: "there")
    digest, again = on_nodes(work, first, second)
    assert digest == again == embed.digest_of(noise(), stores.Store(Path(work.config.store)), work)


def test_nodes_with_different_images_are_told_and_nothing_is_remembered(work: embed.Work) -> None:
    stale, fresh = noise(0, stamp=lambda: "here"), noise(1, stamp=lambda: "there")
    for error in on_nodes(work, stale, fresh):
        assert "the nodes have different images" in str(error)
    store = stores.Store(Path(work.config.store))
    assert not (store.folder / "images").exists()
    alone = [embed.digest_of(images, store, work) for images in (stale, fresh)]  # each node by itself
    assert len(set(alone)) == 2
    for error in on_nodes(work, stale, fresh):
        assert "the nodes have different images" in str(error), "also when both are known"


def test_some_ranks_see_features_before_others(work: embed.Work) -> None:
    """On NFS a node may see a file of another node late; it must not compute the features again."""
    embed.embed(noise(), "noise", work)
    late = stores.Store.find
    looks: list[int] = []

    def find(store: stores.Store, key: str, num_images: int) -> Any:
        looks.append(1)
        return None if threading.current_thread().name.endswith("_1") and len(looks) < 3 else late(store, key, num_images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stores.Store, "find", find)
        by_rank = Ranks(2).run(lambda comm: embed.embed(noise(), "noise", replace(work, comm=comm)))
    assert [one.num_computed for one in by_rank] == [0, 0]


# --- damage


def test_a_file_system_that_fails_for_a_moment_leaves_no_damage(work: embed.Work) -> None:
    images, fails = noise(), [True]

    def raw(rows: Sequence[int]) -> list[Raw]:
        if 7 in rows and fails and fails.pop():
            return [OSError(errno.ESTALE, "Stale file handle") if row == 7 else images.raw([row])[0] for row in rows]
        return images.raw(rows)

    failing = replace(images, raw=raw)
    with pytest.raises(UserError, match=r"noise 7 cannot be read now \(Stale file handle\)"):
        embed.embed(failing, "noise", work)
    embedded = embed.embed(failing, "noise", work)
    assert embedded.damaged == {}
    assert not embedded.values.isnan().any()


@pytest.mark.parametrize("place", ["store", "none"])
def test_damaged_images_are_told_now_and_later(work: embed.Work, place: str) -> None:
    images, raw = noise(), noise().raw
    images = replace(
        images, raw=lambda rows: [b"" if row in (7, 300) else image for row, image in zip(rows, raw(rows), strict=True)]
    )
    if place == "none":
        work = replace(work, config=FeaturesConfig(store="none"))
    for _ in range(2):
        embedded = embed.embed(images, "noise", work)
        assert embedded.damaged == {7: "it is empty", 300: "it is empty"}
        assert np.flatnonzero(embedded.values.isnan().any(1)).tolist() == [7, 300]
        assert embed.find_damage(images, work) == embedded.damaged


def test_damage_is_looked_for_once(work: embed.Work, monkeypatch: pytest.MonkeyPatch) -> None:
    assert embed.find_damage(noise(), work) == {}
    monkeypatch.setattr(features, "find_damage", lambda *_: pytest.fail("looked again"))
    assert embed.find_damage(noise(), work) == {}


# --- the program


def test_a_second_run_computes_no_feature(invoke: Invoke, squares: Path, tmp_path: Path) -> None:
    small = ["-s", "rounds=1", "-s", "data.name=hdf5", "-s", f"data.path={squares}", "-s", "partition.num_clients=2"]
    small += ["-s", f"features.store={tmp_path / 'kept'}"]
    attributes = []
    for name in ("first", "second"):
        invoke(
            "run", ROOT / "configs/quickstart.yaml", *small, "-s", f"features.store={tmp_path / 'kept'}", "--out", tmp_path / name
        )
        attributes.append(hdf5file.read(tmp_path / name)[0])
    assert [run["num_features_computed"] for run in attributes] == [20, 0]
    assert attributes[0]["features"] == attributes[1]["features"]
    first, second = ((tmp_path / name / "adapter/adapter_model.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,400 images, whose features take about a second: ten blocks."""
    path = tmp_path_factory.mktemp("pictures") / "noise.h5"
    import h5py

    with h5py.File(path, "w") as file:
        for part, count in (("train", 600), ("test", 200)):
            file[f"{part}/images"] = np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), np.uint8)
            file[f"{part}/labels"] = np.arange(count) % 2
        file.attrs.update(class_names='["one", "other"]', encoding="raw")
    return path


@pytest.fixture
def start(pictures: Path, tmp_path: Path) -> Iterator[Callable[[], tuple[int, Callable[[], int]]]]:
    """Start `data embed` on the pictures: its process, and a function that waits for its exit status."""
    command = [sys.executable, str(ROOT / "tests/killed_embedding.py"), "data", "embed", str(ROOT / "configs/hdf5.yaml")]
    options = ["-s", f"data.path={pictures}", "-s", f"features.store={tmp_path / 'store'}"]
    with subprocess.Popen([*command, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        lines = (line for line in server.stdout if line.strip().isdigit() or line == "ready\n")
        assert next(lines) == "ready\n"

        def begin() -> tuple[int, Callable[[], int]]:
            print(file=server.stdin, flush=True)
            return int(next(lines)), lambda: int(next(lines))

        yield begin
        server.stdin.close()


def test_a_killed_job_leaves_nothing_that_is_read_wrongly(
    start: Callable[[], tuple[int, Callable[[], int]]], clip: Clip, pictures: Path, tmp_path: Path
) -> None:
    """Jobs on one store are killed at random moments. Then one job ends, with the features of a fresh store.

    FLORA_HPC_KILLS sets how many are killed.
    """
    seed = int(time.time())
    store, moments = tmp_path / "store", np.random.default_rng(seed)
    started = time.monotonic()
    _, wait = start()
    assert wait() == 0
    whole = time.monotonic() - started
    (expected,) = (store / "features").glob("*.safetensors")
    values = stores.read(expected)
    assert values is not None
    expected_values, killed, complete = values[0].clone(), 0, 0
    for _ in range(KILLS):
        if moments.random() < 0.3:  # now and then from the start; otherwise on top of what the last one left
            shutil.rmtree(store, ignore_errors=True)
        process, wait = start()
        time.sleep(moments.random() * whole)
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        killed += wait() == signal.SIGKILL
        content = stores.read(expected)
        if content is not None:
            complete += 1
            assert content[0].equal(expected_values), f"seed {seed}"
            expected.unlink()
    assert killed >= KILLS / 2
    _, wait = start()
    assert wait() == 0
    content = stores.read(expected)
    assert content is not None
    assert content[0].equal(expected_values)
    assert stores.is_sound(expected)
    assert [path for path in (store / "features").iterdir() if path != expected and not path.name.startswith(".")] == []
