import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from flora_hpc import open_run
from flora_hpc.bench import madeup
from flora_hpc.cli import app
from flora_hpc.report.style import PHASES


def test_the_made_up_run_is_one_as_the_program_writes(tmp_path: Path) -> None:
    madeup.write(tmp_path / "run.h5", 5, 30, 3)
    run = open_run(tmp_path)
    assert (len(run.rounds), len(run.ranks), len(run.clients)) == (6, 18, 150)
    assert run.status == "finished"
    phases = sum(run.ranks[f"{name}_seconds"] for name in PHASES)
    np.testing.assert_allclose(phases, run.ranks["round_seconds"])
    assert run.clients.groupby("round")["uplink_bytes"].sum().tolist() == run.rounds["uplink_bytes"].tolist()[1:]
    split = run.split
    assert split is not None
    assert split.sum(axis=1).tolist() == run.clients["num_examples"].tolist()[:30]


@pytest.mark.parametrize(("records", "rows"), [("all", 12), ("sample 2", 6)])
def test_json(records: str, rows: int) -> None:
    flags = ["--rounds", "3", "--clients", "4", "--ranks", "2", "--repeats", "1", "--records", records, "--json"]
    found = json.loads(CliRunner().invoke(app, ["bench", "report", *flags], catch_exceptions=False).stdout)
    assert found["client_rows"] == rows
    assert found["read_round_seconds"] > 0
    assert 0 < found["seconds"] == found["repeat_seconds"][0]
    assert 50e6 < found["peak_bytes"] < 1e9
    assert 10_000 < found["page_bytes"] < 1_000_000
