"""The demo keeps what the README says of it, and its adapter is what other tools load."""

import subprocess
import warnings
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

from flora_hpc.clip.attention import unfuse
from flora_hpc.data.datasets import digits
from flora_hpc.data.decode import rgb
from flora_hpc.records import hdf5file
from tests.conftest import ROOT

pytestmark = pytest.mark.mpi
Flora = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def demo(
    flora: Callable[..., subprocess.CompletedProcess[str]], mpiexec: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("demo") / "run"
    result = flora("run", "configs/quickstart.yaml", "--out", out, under=[*mpiexec, "-n", "2"])
    assert result.returncode == 0, result.stderr
    return out


def test_one_row_a_round_and_round_zero(demo: Path) -> None:
    attributes, tables = hdf5file.read(demo)
    assert attributes["status"] == "finished"
    assert attributes["world_size"] == 2
    assert attributes["num_clients"] >= 10
    last = int(tables["rounds"]["round"].max())
    assert tables["rounds"]["round"].tolist() == list(range(last + 1))
    assert last >= 10


def test_accuracy_ends_high_and_the_error_is_at_least_halved(demo: Path) -> None:
    accuracy = hdf5file.read(demo)[1]["rounds"]["test_accuracy"]
    assert accuracy[-1] >= 0.85
    assert 1 - accuracy[-1] <= (1 - accuracy[0]) / 2


FEW = ["-s", "rounds=1", "-s", "client.epochs=1", "-s", "cohort.size=3", "-s", "partition.beta=100"]


@pytest.mark.parametrize(("method", "few"), [("fedlc", []), ("fedfft", FEW)])
def test_the_paper_s_other_ends_beat_zero_shot_too(method: str, few: list[str], invoke: Callable[..., str], tmp_path: Path) -> None:
    """flora does above. A round of full fine-tuning takes as long as all its twenty: three clients of all classes have one."""
    changed = ["-s", f"method.name={method}", *few]
    invoke("run", ROOT / "configs" / "quickstart.yaml", *changed, "--out", tmp_path / "run")
    accuracy = hdf5file.read(tmp_path / "run")[1]["rounds"]["test_accuracy"]
    assert accuracy[-1] > accuracy[0] + 0.01


def test_peft_loads_the_adapter_and_the_plain_model_gets_the_accuracy_that_was_reported(demo: Path) -> None:
    """No code of ours but the split: open_clip encodes whole images and full-length captions under peft's own LoRA."""
    import peft

    folder = f"local-dir:{files('flora_hpc.clip.flora_tiny')}"
    model, _, preprocess = open_clip.create_model_and_transforms(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.PeftModel.from_pretrained(unfuse(model.eval()), str(demo / "adapter")).base_model.model
    data = digits.build(digits.Options(name="digits"))
    labels = data.images.labels[data.test]
    with torch.inference_mode():
        pixels = torch.stack([preprocess(rgb(image)) for image in data.images.raw(data.test.tolist())])
        text = adapted.encode_text(open_clip.get_tokenizer(folder)(list(data.captions)), normalize=True)
        scores = adapted.encode_image(pixels, normalize=True) @ text.T
    accuracy = float(np.mean(scores.argmax(1).numpy() == labels))
    assert accuracy == pytest.approx(hdf5file.read(demo)[1]["rounds"]["test_accuracy"][-1], abs=1.5 / len(labels))
