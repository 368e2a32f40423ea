import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from flora_hpc.bench import log as part
from flora_hpc.bench.log import Meter
from flora_hpc.cli import app
from flora_hpc.errors import UserError
from flora_hpc.observers import hdf5
from flora_hpc.records.schema import ROUNDS
from tests.contracts.known_helpers import round_record, rows, run_info

SMALL = ["-s", "partition.examples_per_client=4", "--clients", "5", "--rounds", "3", "--repeats", "2"]


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", "log", *arguments], env={"COLUMNS": "80"})


def made_up(*seconds: float, writer: tuple[float, ...] = (), file_bytes: tuple[int, ...] = ()) -> Meter:
    """Rounds 0, 1, 2, ... of ten clients each that took so long, a tenth of it in the log phase."""
    table = [
        rows(ROUNDS, {"round": number, "num_clients": 10 if number else 0, "round_seconds": one, "log_seconds": one / 10})
        for number, one in enumerate(seconds)
    ]
    clients = 10 * (len(seconds) - 1)
    return Meter(None, Path(), rows=table, writer_seconds=list(writer), file_bytes=list(file_bytes), num_client_rows=clients)


def test_rounds_0_and_1_do_not_count_in_times_but_the_whole_file_does() -> None:
    logged = made_up(9, 9, 2, 2, 3, writer=(1, 1, 0.25, 0.5, 0.5), file_bytes=(5000, 6000, 7000, 7500, 9000, 10000))
    found = part.result([logged], [made_up(9, 9, 1.0, 1.5, 2.0)])
    assert (found["num_clients"], found["num_rounds"]) == (10, 3)
    assert found["with_log"] == {"round_seconds": 2, "log_seconds": 0.2, "repeat_round_seconds": [2]}
    assert found["without_log"] == {"round_seconds": 1.5, "log_seconds": pytest.approx(0.15), "repeat_round_seconds": [1.5]}
    assert found["round_ratio"] == 2 / 1.5
    assert found["writer_seconds"] == 0.5
    assert found["cost_share"] == (0.2 + 0.5) / 2
    assert found["growth_per_client_row"] == (9000 - 6000) / 30
    assert found["bytes_per_client_row"] == 10000 / 40


def test_the_meter_passes_on_what_it_is_told(tmp_path: Path) -> None:
    meter = Meter(hdf5.build(tmp_path), tmp_path / "run.h5")
    meter.started(run_info())
    for number in range(4):
        meter.round(round_record(number, num_clients=1000))
    meter.ended("finished")
    assert meter.file_bytes[-1] == (tmp_path / "run.h5").stat().st_size
    assert np.diff(meter.file_bytes[:-1]).min() > 0
    assert min(meter.writer_seconds) > 0
    assert meter.num_client_rows == 3000
    assert meter.timed_rounds()["round"].tolist() == [2, 3]


def test_both_sides_are_real_runs_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = bench(*SMALL, "--json")
    assert result.exit_code == 0, result.exception
    found = json.loads(result.stdout)
    assert (found["num_clients"], found["num_rounds"], found["repeats"], found["world_size"]) == (5, 4, 2, 1)
    for side in ("with_log", "without_log"):
        assert found[side]["round_seconds"] > found[side]["log_seconds"] > 0
        assert len(found[side]["repeat_round_seconds"]) == 2
    assert found["cost_share"] == pytest.approx(
        (found["with_log"]["log_seconds"] + found["writer_seconds"]) / found["with_log"]["round_seconds"]
    )
    assert found["bytes_per_client_row"] == found["file_bytes"] / 15
    assert {"device", "processor", "num_threads", "versions", "model", "backend"} <= found.keys()
    assert [*tmp_path.iterdir()] == []
    assert [line.split(" its log ")[0] for line in result.stderr.splitlines()] == [
        f"run of 3 rounds {word}" for word in ("with", "without", "without", "with")
    ]


def test_the_table_for_people() -> None:
    result = bench(*SMALL)
    assert result.exit_code == 0, result.exception
    assert result.stdout.splitlines()[0] == "flora-tiny, flora, digits, 5 clients a round"
    text = " ".join(result.stdout.split())
    assert "log and writing are" in text
    assert "medians over 4 rounds of 2 runs on each side, in turn, on 1 rank" in text


def test_mistakes() -> None:
    assert bench("--repeats", "0").exit_code == 2
    error = bench("-s", "rounds=1").exception
    assert isinstance(error, UserError)
    assert str(error).startswith("rounds: 1 leaves nothing to measure")
