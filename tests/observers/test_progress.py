"""Observers hear of clients within a round, on rank 0's own thread."""

from collections.abc import Callable
from pathlib import Path

import pytest

from flora_hpc.observers import quiet
from flora_hpc.observers._background import Background
from tests.conftest import ROOT


def test_only_those_that_watch_clients_are_told(tmp_path: Path) -> None:
    heard: list[tuple[int, int, int]] = []

    class Watching(quiet.Quiet):
        def trained(self, done: int, num_local: int, cohort: int) -> None:
            heard.append((done, num_local, cohort))

    Background([quiet.build(tmp_path), Watching(tmp_path)]).trained(2, 5, 10)
    assert heard == [(2, 5, 10)]


def test_a_run_tells_every_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Callable[..., str]) -> None:
    """Ten clients in groups of up to four, in one round."""
    heard: list[tuple[int, int, int]] = []
    monkeypatch.setattr(quiet.Quiet, "trained", lambda self, *told: heard.append(told), raising=False)
    quickstart = ROOT / "configs" / "quickstart.yaml"
    invoke("run", quickstart, "--out", tmp_path / "run", "--quiet", "-s", "rounds=1", "-s", "client.group_size=4")
    assert heard[0] == (0, 10, 10)
    assert heard[-1] == (10, 10, 10)
    assert len(heard) == 4
