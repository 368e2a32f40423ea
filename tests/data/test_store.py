import json
import os
import threading
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from flora_hpc.data import store as stores
from flora_hpc.data.store import Store
from flora_hpc.errors import UserError

SIZES = [2, 2, 1]
VALUES = torch.arange(15.0).view(5, 3)
FACTS = {"dataset": "numbers", "model": "small"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def fill(store: Store, *numbers: int, values: torch.Tensor = VALUES) -> None:
    for number in numbers:
        store.add_block("key", number, values.split(SIZES)[number], {4: "it is empty"} if number == 2 else {})


def everything(store: Store) -> list[str]:
    """Paths of all files of the store."""
    return sorted(str(path.relative_to(store.folder)) for path in store.folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_become_features(store: Store, dtype: torch.dtype) -> None:
    fill(store, 2, 0, 1, values=VALUES.to(dtype))
    store.complete("key", SIZES, FACTS)
    stored = store.find("key", 5)
    assert stored is not None
    assert stored.values.dtype == dtype
    assert stored.values.equal(VALUES.to(dtype))
    assert stored.damaged == {4: "it is empty"}
    assert stored.facts["dataset"] == "numbers"
    assert everything(store) == ["features/key.safetensors"]


def test_any_program_reads_the_file(store: Store) -> None:
    fill(store, 0, 1, 2)
    store.complete("key", SIZES, FACTS)
    path = store.folder / "features" / "key.safetensors"
    assert load_file(path)["features"].equal(VALUES)
    with safe_open(path, "np") as file:
        assert file.metadata()["model"] == "small"
        assert file.get_tensor("features").tolist() == VALUES.tolist()


def test_features_are_mapped_and_not_read(store: Store) -> None:
    large = torch.zeros(4096, 512)  # 8 MiB
    store.add_block("large", 0, large, {})
    store.complete("large", [4096], FACTS)
    stored = store.find("large", 4096)
    assert stored is not None
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if "large.safetensors" in line]
    assert mapped, "the file must be part of the address space"
    assert float(stored.values.sum()) == 0


def test_nothing_is_there_before_all_blocks_are(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "PATIENCE_SECONDS", 0)
    fill(store, 0, 2)
    assert store.blocks("key", SIZES) == {0, 2}
    with pytest.raises(UserError, match=r"features\.store: .* is not one folder for all nodes"):
        store.complete("key", SIZES, FACTS)
    assert store.find("key", 5) is None
    assert store.blocks("key", SIZES) == {0, 2}


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_block_that_was_cut_is_not_counted(store: Store, keep: int) -> None:
    fill(store, 0, 1, 2)
    (path,) = store.folder.glob("features/key.*.blocks/1.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    assert store.blocks("key", SIZES) == {0, 2}


def test_a_block_of_another_size_or_number_is_not_counted(store: Store) -> None:
    fill(store, 0)
    store.add_block("key", 1, VALUES, {})
    store.add_block("key", 7, VALUES[:2], {})
    assert store.blocks("key", SIZES) == {0}


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_features_that_were_cut_are_not_there_and_can_be_made_anew(store: Store, keep: int) -> None:
    fill(store, 0, 1, 2)
    store.complete("key", SIZES, FACTS)
    path = store.folder / "features" / "key.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert store.find("key", 5) is None
    fill(store, 0, 1, 2)
    store.complete("key", SIZES, FACTS)
    assert store.find("key", 5) is not None


def test_features_of_another_number_of_images_are_not_these(store: Store) -> None:
    fill(store, 0, 1, 2)
    store.complete("key", SIZES, FACTS)
    assert store.find("key", 6) is None


def test_one_wrong_bit_is_found_by_a_check(store: Store) -> None:
    fill(store, 0, 1, 2)
    store.complete("key", SIZES, FACTS)
    path = store.folder / "features" / "key.safetensors"
    assert stores.is_sound(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert not stores.is_sound(path)


def test_two_jobs_at_once(store: Store) -> None:
    """Each thread adds all blocks and completes them, repeatedly; the last one finds complete features."""
    failures: list[BaseException] = []

    def job() -> None:
        try:
            for number in range(20):
                key = f"key{number}"
                for block, values in enumerate(VALUES.split(SIZES)):
                    store.add_block(key, block, values, {})
                store.complete(key, SIZES, FACTS)
                stored = store.find(key, 5)
                assert stored is not None
                assert stored.values.equal(VALUES)
        except BaseException as error:
            failures.append(error)

    jobs = [threading.Thread(target=job) for _ in range(4)]
    for each in jobs:
        each.start()
    for each in jobs:
        each.join()
    assert failures == []


def test_a_job_whose_blocks_another_one_cleared_up_finds_the_features(store: Store) -> None:
    fill(store, 0, 1, 2)
    store.complete("key", SIZES, FACTS)
    store.complete("key", SIZES, FACTS)
    assert store.find("key", 5) is not None


def test_a_full_disk_is_told_and_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"features\.store: .* cannot be written \(No space left on device\); set features\.store"):
        fill(store, 0)
    assert everything(store) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file")
    with pytest.raises(UserError, match=r"features\.store: .*file cannot be written"):
        fill(store, 0)
    store.remember("stamp", "digest")  # these only save time
    store.note_damage("digest", {})
    assert store.digest("stamp") == ""
    assert store.damage("digest") is None


def test_who_only_reads_makes_nothing(tmp_path: Path) -> None:
    """Users without the right to write can use the features of a colleague."""
    store = Store(tmp_path / "nowhere")
    assert store.find("key", 5) is None
    assert store.digest("stamp") == ""
    assert store.damage("digest") is None
    assert store.blocks("key", SIZES) == set()
    assert store.entries() == []
    assert not store.folder.exists()


def test_blocks_of_another_device_or_version_are_not_joined(store: Store) -> None:
    """The last bits may differ, and the facts in the file would be wrong."""
    fill(store, 0, 1)
    other = Store(store.folder, "a GPU")
    assert other.blocks("key", SIZES) == set()
    fill(other, 0, 1, 2, values=-VALUES)
    other.complete("key", SIZES, FACTS)
    stored = store.find("key", 5)
    assert stored is not None
    assert stored.values.equal(-VALUES)


def test_blocks_that_a_job_left_when_it_was_killed_at_its_end_go_with_the_next_look(store: Store) -> None:
    fill(store, 0, 1, 2)
    (blocks,) = store.folder.glob("features/key.*.blocks")
    kept = {path.name: path.read_bytes() for path in blocks.iterdir()}
    store.complete("key", SIZES, FACTS)
    blocks.mkdir()
    for name, data in kept.items():
        (blocks / name).write_bytes(data)
    assert store.find("key", 5) is not None
    assert everything(store) == ["features/key.safetensors"]


# --- what is known of images


def test_digests_are_remembered_by_stamp(store: Store) -> None:
    assert store.digest("stamp") == ""
    store.remember("stamp", "digest")
    assert store.digest("stamp") == "digest"
    assert store.digest("other") == ""


def test_damage_is_remembered_by_digest(store: Store) -> None:
    assert store.damage("digest") is None
    store.note_damage("digest", {3: "it is empty"})
    assert store.damage("digest") == {3: "it is empty"}
    (store.folder / "damage" / "digest.json").write_text("{")
    assert store.damage("digest") is None


# --- looking after it


def test_entries_those_used_last_first(store: Store) -> None:
    fill(store, 0, 1, 2)
    store.complete("key", SIZES, FACTS)
    store.add_block("unfinished", 0, VALUES[:2], {})
    os.utime(store.folder / "features" / "key.safetensors", (1000, 1000))
    unfinished, complete = store.entries()
    assert (complete.key, complete.complete, complete.used) == ("key", True, 1000)
    assert complete.facts["dataset"] == "numbers"
    assert complete.num_bytes == complete.path.stat().st_size
    assert (unfinished.key, unfinished.complete) == ("unfinished", False)
    store.find("key", 5)
    (used,) = [entry.used for entry in store.entries() if entry.key == "key"]
    assert used > 1000, "it was used now"


def test_features_that_are_removed_stay_with_who_has_mapped_them(store: Store) -> None:
    fill(store, 0, 1, 2)
    store.complete("key", SIZES, FACTS)
    store.add_block("unfinished", 0, VALUES[:2], {})
    stored = store.find("key", 5)
    assert stored is not None
    for entry in store.entries():
        stores.remove(entry)
    assert everything(store) == []
    assert store.entries() == []
    assert stored.values.equal(VALUES)


def test_facts_survive_odd_texts(store: Store) -> None:
    store.add_block("key", 0, VALUES, {1: 'broken "ünicode" \n'})
    store.complete("key", [5], {"dataset": "naïve {}"})
    stored = store.find("key", 5)
    assert stored is not None
    assert stored.damaged == {1: 'broken "ünicode" \n'}
    assert stored.facts["dataset"] == "naïve {}"
    assert json.loads(stored.facts["damaged"])
