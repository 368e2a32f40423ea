"""docs/seeds.md is a rule that others can follow: its code, which knows nothing of flora_hpc, gives the program's numbers."""

import re
from typing import Any

import numpy as np
import pytest
import torch

from flora_hpc import cohort, seeds, trainer
from flora_hpc.config import ClientConfig, CohortConfig
from flora_hpc.data import holdings
from flora_hpc.data.images import draw_test
from flora_hpc.data.partitioners import iid
from flora_hpc.methods import flora
from tests.conftest import ROOT, setting, small_model
from tests.data.made_images import made

PAGE = (ROOT / "docs" / "seeds.md").read_text()
LABELS = np.random.default_rng(0).integers(0, 3, 101)


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """What the page's code defines."""
    names: dict[str, Any] = {}
    for code in re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        exec(code, names)  # the page's own code
    assert not any("flora_hpc" in str(getattr(value, "__module__", "")) for value in names.values())
    return names


def split_of(num_clients: int, seed: int, rows: np.ndarray) -> holdings.Holdings:
    return holdings.make(iid.Options(name="iid", num_clients=num_clients), made(LABELS), rows, seed)


@pytest.mark.parametrize("seed", [0, 7, 2**40])
def test_words(page: dict[str, Any], seed: int) -> None:
    clients = np.array([0, 3, 2**33 + 1])
    expected = seeds.words(seed, "batches", 4, 1, of=clients, count=7)
    assert [page["words"](seed, "batches", 4, 1, client=client, count=7) for client in clients.tolist()] == expected.tolist()


def test_every_purpose_is_on_the_page() -> None:
    """Benchmarks and measures of how skewed a split is decide no result of a run."""
    code = "".join(
        path.read_text() for path in (ROOT / "flora_hpc").rglob("*.py") if path.name != "mix.py" and "bench" not in path.parts
    )
    calls = re.findall(r"seeds\.(?:generator|words|uniforms|permuted|Streams)\([^,()]+, *\"([a-z ]+)\"", code)
    assert {"cohort", "attack", "records", "fresh adapter"} <= set(calls)
    assert [purpose for purpose in set(calls) if f'"{purpose}"' not in PAGE] == []


def test_test_images(page: dict[str, Any]) -> None:
    result = page["test_images"](LABELS, 0.3, "digits")
    np.testing.assert_array_equal(result, np.flatnonzero(draw_test(LABELS, 0.3, "digits")))


@pytest.mark.parametrize("seed", [0, 5])
def test_the_split(page: dict[str, Any], seed: int) -> None:
    rows = np.arange(101)[::2]
    holders = split_of(4, seed, rows)
    for client, images in enumerate(page["iid"](rows, 4, seed)):
        np.testing.assert_array_equal(images, holders.examples(client))


def test_the_cohort(page: dict[str, Any]) -> None:
    np.testing.assert_array_equal(page["cohort"](1000, 20, 3, 8), cohort.sample(CohortConfig(size=20), 1000, 3, 8))

    places = np.array([0, 1, 131_071, 70_000])
    expected = cohort.sample(CohortConfig(size=131_072), 10**6, 3, 8)[places]
    assert [page["at_place"](place, 10**6, 3, 8) for place in places.tolist()] == expected.tolist()


@pytest.mark.parametrize("batch_size", [4, 10, 26, 100])
def test_the_batches(page: dict[str, Any], batch_size: int) -> None:
    """101 images among four clients, in groups as the program makes them: the first has one more than the others."""
    holders = split_of(4, 2, np.arange(101))
    config = ClientConfig(epochs=3, batch_size=batch_size)
    assert config.shuffle
    ((group,),) = cohort.groups_of_ranks(np.arange(4), holders.sizes(np.arange(4)), cohort.Grouping(4), 1, "balanced")
    made_here = trainer.make_batches(group, holders, config, 2, 6)
    for place, client in enumerate(group.tolist()):
        steps = [
            made_here.examples[step, place][made_here.present[step, place]].tolist() for step in range(made_here.num_steps[place])
        ]
        images = page["iid"](np.arange(101), 4, 2)[client].tolist()
        assert page["batches"](images, client, 2, 6, 3, batch_size) == steps


def test_the_initial_adapter(page: dict[str, Any], captions: torch.Tensor) -> None:
    method = flora.build(flora.Options(name="flora", rank=2), setting(small_model(), captions))
    shapes = [shape for name, shape in method.shapes.items() if name.endswith(".lora_A")]
    assert shapes
    values = method.init(seeds.generator(9, "initial adapter"))
    expected = [value.numpy() for name, value in values.items() if name.endswith(".lora_A")]
    for result, expected_result in zip(page["lora_a"](shapes, 2, 9), expected, strict=True):
        np.testing.assert_array_equal(result, expected_result)
