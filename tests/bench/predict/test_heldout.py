"""Predictions held out: pairs, and how they are shown."""

from pathlib import Path

import pytest
from rich.console import Console

from flora_hpc import api
from flora_hpc.bench.predict import heldout
from flora_hpc.bench.predict.heldout import Case
from flora_hpc.cli._bench_predict import show
from flora_hpc.comm.launch import Launch
from flora_hpc.errors import UserError
from tests.bench.predict.made import SHARED

PAIR = {
    "case": "flora-tiny, 1 rank",
    "predicted_seconds": 1.2,
    "low_seconds": 1.1,
    "high_seconds": 1.3,
    "measured_seconds": 1.0,
    "error": 0.2,
    "allowed": 0.1,
    "within": False,
    "in_band": False,
}


def test_a_pair_of_a_prediction_and_what_was_measured(tmp_path: Path) -> None:
    each = {"client.first_step": "each"}
    cases = [Case(1, 2, rounds=4, other=each), Case(1, 5, rounds=4, other=each), Case(1, 3, rounds=4, other=each)]
    for number, case in enumerate(cases):
        api.run(case.config(tmp_path / "store"), out=tmp_path / str(number), shared=SHARED, signals=False)
    training = [tmp_path / "0", tmp_path / "1"]
    pair = heldout.pair(cases[2], training, tmp_path / "2", tmp_path / "store", SHARED)
    assert pair["case"] == "flora-tiny, 1 rank, 3 clients, batch 32, client.first_step each"
    assert pair["error"] == pytest.approx(pair["predicted_seconds"] / pair["measured_seconds"] - 1)
    assert pair["allowed"] == 0.1, "one rank has a core"
    assert pair["within"] == (abs(pair["error"]) <= 0.1)
    assert pair["terms"].keys() >= pair["measured_terms"].keys()


def test_what_is_held_out_is_no_training_run() -> None:
    assert not [case for case in heldout.HELD_OUT if case in heldout.TRAINING]
    assert max(case.ranks for case in heldout.TRAINING) == 2
    assert max(case.clients for case in heldout.TRAINING) == 1000


def test_misses_are_shown() -> None:
    pairs = [PAIR, PAIR | {"case": "other", "error": 0.01, "within": True, "in_band": True}]
    console = Console(width=160, record=True)
    versions = {"torch": "2.14.1"}
    counts = {"training": ["a"], "repeats": 2, "within": 1, "in_band": 1, "load_before": 0.5}
    show(console, counts | {"pairs": pairs, "processor": "Fast CPU", "versions": versions})
    text = console.export_text()
    assert "+20.0%" in text
    assert "10% missed" in text
    assert "1 of 2 within what is allowed; the band holds 1 of 2" in text


def test_ranks_of_a_launcher_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heldout.launch, "detect", lambda: Launch(rank=0, size=2))
    with pytest.raises(UserError, match="bench predict starts its ranks itself"):
        heldout.check()
