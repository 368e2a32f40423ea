"""Splitting a million examples among up to a million clients takes memory for a few numbers each."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flora_hpc import plugins
from flora_hpc.data import holdings
from tests.data.made_images import made, write_clients

MILLION = 1_000_000
LABELS = np.random.default_rng(0).integers(0, 10, MILLION)
WRITERS = np.random.default_rng(1).permutation(MILLION)
IMAGES = made(LABELS, writer=WRITERS, named=np.array([f"writer number {number}" for number in WRITERS], object))


@pytest.mark.parametrize(
    ("name", "num_clients", "options"),
    [
        ("iid", MILLION, {}),
        ("dirichlet", MILLION, {"beta": 0.1}),
        ("dirichlet", MILLION, {"beta": 100}),
        ("dirichlet", MILLION // 5, {"beta": 0.1, "min_examples": 2}),
        ("quantity", MILLION, {"beta": 0.1}),
        ("quantity", MILLION // 5, {"beta": 0.1, "min_examples": 2}),
        ("pathological", MILLION // 2, {"classes_per_client": 2}),
        ("natural", MILLION // 5 * 4, {"column": "writer"}),
        ("natural", MILLION, {"column": "named"}),
        ("fewshot", MILLION // 20, {"shots": 1}),
        ("fewshot_pathological", MILLION // 5, {"shots": 2, "classes_per_client": 2}),
    ],
)
def test_a_million_examples_are_split_in_200_megabytes(name: str, num_clients: int, options: dict[str, Any]) -> None:
    chosen = plugins.member("partitioners", name).Options(name=name, num_clients=num_clients, **options)
    rows = np.arange(MILLION)
    tracemalloc.start()
    try:
        result = holdings.make(chosen, IMAGES, rows, 0)
        kept_bytes, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 200e6
    assert kept_bytes < 17e6  # a row for each example, and a start for each client
    assert result.sizes(np.arange(num_clients)).min() >= options.get("min_examples", 1)


@pytest.mark.parametrize("by", ["row", "image"])
def test_a_file_is_read_in_350_bytes_for_each_line(tmp_path: Path, by: str) -> None:
    """A tenth of a million, for tracemalloc makes it ten times as slow; a million takes 2 seconds, and 3 of texts."""
    num = MILLION // 10
    writers, rows = np.random.default_rng(2).permutation(num), np.arange(num)
    paths = np.array([f"images/{row}.png" for row in rows.tolist()], object)
    table = write_clients(tmp_path / "clients.csv", writers)
    if by == "image":
        lines = (f"writer {writer},{path}" for writer, path in zip(writers, paths, strict=True))
        table.write_text("\n".join(["client,image", *lines]))
    chosen = plugins.member("partitioners", "file").Options(name="file", path=table)
    images = made(LABELS[:num], path=paths)
    tracemalloc.start()
    try:
        result = holdings.make(chosen, images, rows, 0)
        kept_bytes, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 350 * num
    assert kept_bytes < 17 * num + 100_000
    expected = np.argsort(writers) if by == "row" else rows
    assert [result.examples(client).tolist() for client in range(0, num, 999)] == expected[::999, None].tolist()
