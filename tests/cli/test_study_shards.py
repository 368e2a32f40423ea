"""Several jobs play shards of a study at the same time, and say by -s how their ranks communicate."""

from pathlib import Path

import pytest

from flora_hpc.cli import _study_run
from flora_hpc.errors import UserError
from flora_hpc.owner.claim import Claim, living_owner
from flora_hpc.records.study import open_study
from flora_hpc.studies import points
from tests.conftest import refusal

QUICK = "configs/quickstart.yaml"
SMALL = ["-s", "rounds=1", "-s", "partition.num_clients=2"]


@pytest.fixture
def study(tmp_path: Path, invoke) -> Path:
    """A study of three points, prepared."""
    folder = tmp_path / "study"
    said = invoke("study", QUICK, "--seeds", 3, *SMALL, "--out", folder, "--prepare")
    assert f"{folder}: 3 points; `flora-hpc study --resume --out {folder}` plays them" in said
    return folder


def test_a_shard_plays_every_nth_point_while_another_one_lives(study: Path, invoke) -> None:
    with Claim(_study_run.claimed(study, (1, 2))) as other:
        other.take()
        invoke("study", "--resume", "--out", study, "--shard", "0/2", "-s", "comm.backend=serial")
        assert [point.status for point in open_study(study).rows] == ["finished", "waiting", "finished"]
        assert "plays shard 1/2 of this study; wait for its end, or stop it" in refusal("study", "--resume", "--out", study)
        text = refusal("study", "--resume", "--out", study, "--shard", "1/2")
        assert "belongs to a run that goes on" in text
    assert "comm.backend=serial" not in (study / "study.yaml").read_text()
    assert points.read(study).comm.backend == "auto"


def test_no_shard_beside_the_whole_study(study: Path) -> None:
    with Claim(study) as whole:
        whole.take()
        assert living_owner(study) is not None
        assert "plays the whole study; wait for its end" in refusal("study", "--resume", "--out", study, "--shard", "0/2")
    assert living_owner(study) is None
    assert living_owner(study / "nowhere") is None


def test_only_keys_of_comm_can_be_set_when_a_study_goes_on(study: Path) -> None:
    assert points.read(study, ["comm.backend=gloo"]).comm.backend == "gloo"
    assert "-s may set keys of comm alone" in refusal("study", "--resume", "--out", study, "-s", "rounds=3")
    with pytest.raises(UserError, match=r"comm.backend: no backend 'mppi'; did you mean 'mpi'"):
        points.read(study, ["comm.backend=mppi"])
