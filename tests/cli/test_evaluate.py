"""`flora-hpc evaluate`: any adapter, any data; its own tests of agreement are in contracts/test_methods.py."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flora_hpc.cli import app
from flora_hpc.errors import UserError
from flora_hpc.records import hdf5file
from tests.conftest import ROOT

Invoke = Callable[..., str]
FEW = ["-s", "rounds=1", "-s", "partition.num_clients=40", "-s", "cohort.size=2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    for method in ("flora", "fedlc"):
        command = ["run", str(ROOT / "configs" / "quickstart.yaml"), "-s", f"method.name={method}", *FEW]
        result = CliRunner().invoke(app, [*command, "--out", str(folder / method)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    return {method: folder / method for method in ("flora", "fedlc")}


def test_one_json_object(runs: dict[str, Path], invoke: Invoke) -> None:
    told = json.loads(invoke("evaluate", runs["flora"] / "run.h5", "--json"))
    assert told["dataset"] == "digits"
    assert told["num_images"] == 359
    assert told["accuracy"] == told["num_correct"] / 359 == hdf5file.read(runs["flora"])[1]["rounds"]["test_accuracy"][-1]


def test_other_data_with_captions_of_its_own(runs: dict[str, Path], invoke: Invoke, squares: Path) -> None:
    """The digits' caption must not follow the adapter to data that shows no numbers."""
    told = invoke("evaluate", runs["flora"], "--data", squares)
    assert f"flora of {runs['flora']} on squares: " in told
    assert " of 10 test images right" in told
    assert told == invoke("evaluate", runs["flora"], "--data", squares, "-s", "data.caption=a photo of a {}.")


def refusal(*arguments: object) -> str:
    with pytest.raises(UserError) as error:
        CliRunner().invoke(app, list(map(str, ["evaluate", *arguments])), catch_exceptions=False)
    return str(error.value)


def test_a_classifier_knows_its_own_classes_only(runs: dict[str, Path], squares: Path) -> None:
    assert "tells the classes zero, one, two, ... apart, not shade 0, shade 1, shade 2, ..." in refusal(
        runs["fedlc"], "--data", squares
    )


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["model.name=ViT-B-32", "model.pretrained=none"], "lora_A is 4 x 128 but should be 4 x 512: it belongs to another model"),
        (["method.rank=3"], "lora_A is 4 x 128 but should be 3 x 128"),
        (["method.name=fedlc"], "has no classifier.weight, so it does not belong to flora-tiny and this method"),
        (["method.targets=[text.q_proj]"], "has no transformer.resblocks.0.attn.q_proj.lora_A"),
        (["data.name=digit"], "no dataset 'digit'; did you mean 'digits'?"),
    ],
)
def test_an_adapter_of_something_else(runs: dict[str, Path], overrides: list[str], sentence: str) -> None:
    assert sentence in refusal(runs["flora"], *(part for override in overrides for part in ("-s", override)))


def test_a_run_without_an_adapter(runs: dict[str, Path], tmp_path: Path) -> None:
    for name in ("config.yaml", "run.h5"):
        shutil.copy(runs["flora"] / name, tmp_path)
    assert "holds no adapter" in refusal(tmp_path)


def test_no_run_at_all(tmp_path: Path) -> None:
    assert "holds no run" in refusal(tmp_path / "nothing")


@pytest.mark.mpi
def test_two_ranks_say_once_what_one_says(
    runs: dict[str, Path], flora: Callable[..., subprocess.CompletedProcess[str]], mpiexec: list[str], invoke: Invoke
) -> None:
    result = flora("evaluate", runs["flora"], under=[*mpiexec, "-n", "2"])
    assert result.returncode == 0, result.stderr
    assert result.stdout == invoke("evaluate", runs["flora"])
