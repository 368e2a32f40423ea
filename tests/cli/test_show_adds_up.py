"""What `show` and the frames say of a real run is what its file holds."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from rich.filesize import decimal

import flora_hpc
from flora_hpc.records import views
from flora_hpc.records.schema import TABLES
from flora_hpc.report.columns import headlines
from tests.conftest import ROOT

PHASES = [f"{phase}_seconds" for phase in views.PHASES]


@pytest.fixture(scope="module")
def run(flora: Callable[..., object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rounds of the quickstart."""
    out = tmp_path_factory.mktemp("run") / "run"
    flora("run", ROOT / "configs" / "quickstart.yaml", "--out", out, "-s", "rounds=3", "--quiet")
    return out


@pytest.fixture
def raw(run: Path) -> dict[str, np.ndarray]:
    """The tables, read with nothing but h5py."""
    with h5py.File(run / "run.h5") as file:
        return {name: file[name][:] for name in TABLES}


def test_phases_add_up_to_the_round(raw: dict[str, np.ndarray]) -> None:
    """Within two hundredths over all rounds. A busy machine may take one round's processor away between two phases."""
    for table in ("rounds", "ranks"):
        rows = raw[table]
        sums = sum(rows[name] for name in PHASES)
        assert 0.98 < sums.sum() / rows["round_seconds"].sum() <= 1
        shares = sums / rows["round_seconds"]
        assert np.all((shares > 0.8) & (shares <= 1)), shares


def test_tables_agree_with_each_other(raw: dict[str, np.ndarray]) -> None:
    for row in raw["rounds"]:
        clients, ranks = (raw[name][raw[name]["round"] == row["round"]] for name in ("clients", "ranks"))
        assert (row["num_clients"], row["num_examples"]) == (len(clients), clients["num_examples"].sum())
        assert (row["uplink_bytes"], row["downlink_bytes"]) == (clients["uplink_bytes"].sum(), clients["downlink_bytes"].sum())
        assert row["collective_bytes"] == ranks["collective_bytes"].sum()
        assert row["num_clients"] == ranks["num_clients"].sum()
        for name in (*PHASES, "round_seconds"):
            assert row[name] == pytest.approx(ranks[name].mean())


@pytest.mark.parametrize("table", TABLES)
def test_frames_json_and_csv_hold_what_the_file_holds(
    run: Path, raw: dict[str, np.ndarray], table: str, invoke: Callable[..., str]
) -> None:
    told = json.loads(invoke("show", run, f"--{table}", "--json"))[table]
    lines = list(csv.DictReader(io.StringIO(invoke("show", run, f"--{table}", "--csv"))))
    frame = getattr(flora_hpc.open_run(run), table)
    assert len(told) == len(lines) == len(frame) == len(raw[table])
    for name in raw[table].dtype.names:
        if raw[table].dtype[name].kind in "if":
            expected = raw[table][name].astype(float)
            for found in (frame[name], [row[name] for row in told], [row[name] or "nan" for row in lines]):
                np.testing.assert_array_equal(np.array(found, float), expected, name)


def test_the_summary_says_the_sums_of_the_file(run: Path, raw: dict[str, np.ndarray], invoke: Callable[..., str]) -> None:
    shown = invoke("show", run)
    rows = raw["rounds"]
    up, down, sent = (decimal(int(rows[name].sum())) for name in ("uplink_bytes", "downlink_bytes", "collective_bytes"))
    accuracy = rows["test_accuracy"]
    for words in (
        f"{accuracy[0]:.4f} → {accuracy[-1]:.4f}",
        f"{up} up, {down} down",
        f"{sent} handed to collectives",
        f"{views.seconds(rows['round_seconds'].sum())} in rounds",
        decimal(int(raw["ranks"]["peak_memory_bytes"].max())),
    ):
        assert words in shown
    share = rows["train_seconds"].sum() / rows["round_seconds"].sum()
    assert f"train {share:.0%}" in shown
    page = {what: value for what, value, _ in headlines(flora_hpc.open_run(run))}
    assert (page["federation traffic"], page["sent by ranks"]) == (f"{up} up", sent)
    assert page["time in rounds"] == views.seconds(rows["round_seconds"].sum())
