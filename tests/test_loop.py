"""What ends a run, and what its log says then."""

from collections.abc import Callable
from pathlib import Path

import pytest

from flora_hpc.errors import UserError
from flora_hpc.records import hdf5file
from tests.conftest import ROOT

SMALL = ["rounds=3", "client.epochs=1", "partition.name=iid", "partition.num_clients=2", "data.name=hdf5"]


@pytest.mark.parametrize("overlap", [False, True])
def test_a_run_of_which_every_update_is_rejected_stops_with_a_sentence(
    overlap: bool, squares: Path, tmp_path: Path, invoke: Callable[..., str]
) -> None:
    """Steps of 1e30 make no finite update; whether the round is tested at once or later."""
    settings = [*SMALL, f"data.path={squares}", "client.lr=1e30", f"evaluate.overlap={overlap}".lower()]
    words = [word for setting in settings for word in ("-s", setting)]
    with pytest.raises(UserError, match=r"round 1: every client's update was rejected, .* lower client\.lr \(1e\+30\), .* weights"):
        invoke("run", ROOT / "configs" / "quickstart.yaml", *words, "--out", tmp_path / "run", "-q")
    attributes, tables = hdf5file.read(tmp_path / "run")
    assert attributes["status"] == "failed"
    assert tables["rounds"][["round", "num_clients", "num_rejected"]].tolist() == [(0, 0, 0), (1, 2, 2)]
    assert tables["clients"]["weight"].tolist() == [0, 0]
    assert not (tmp_path / "run" / "adapter").exists()
