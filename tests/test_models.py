"""Whole runs on models that are not the demo's: other architectures from a directory, and weights that must be fetched."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from flora_hpc.clip.attention import fuse
from flora_hpc.clip.load import load
from flora_hpc.config import ModelConfig
from flora_hpc.records import hdf5file
from tests.conftest import ROOT

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
VIT = {"image_size": 16, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
MODELS = {
    "a residual network": {"embed_dim": 8, "vision_cfg": RESNET, "text_cfg": TEXT},
    "a text tower that sees both ways": {
        "embed_dim": 8,
        "vision_cfg": VIT,
        "text_cfg": TEXT | {"no_causal_mask": True, "pool_type": "last"},
        "custom_text": True,
    },
}
TIMM = {"timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear"}
MODELS["an image tower of timm's"] = {"embed_dim": 8, "vision_cfg": TIMM | {"image_size": 160}, "text_cfg": TEXT}
FEW = ["-s", "rounds=1", "-s", "partition.num_clients=5", "-s", "cohort.size=2"]


@pytest.fixture(params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An open_clip directory with random weights."""
    config = json.loads(json.dumps(MODELS[request.param]))
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    torch.manual_seed(0)
    settings = {"model_cfg": MODELS[request.param], "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(settings))
    save_file(kind(**config).state_dict(), tmp_path / "open_clip_model.safetensors")
    return tmp_path


@pytest.mark.parametrize("method", ["flora", "fedfft", "fedtext", "fedlc"])
def test_a_run_on_another_architecture(folder: Path, method: str, squares: Path, invoke: Callable[..., str]) -> None:
    model = ["-s", "model.name=mine", "-s", f"model.pretrained={folder}", "-s", f"method.name={method}"]
    model += ["-s", f"data={{name: hdf5, path: {squares}}}"]
    invoke("run", ROOT / "configs" / "quickstart.yaml", *model, *FEW, "--out", folder / "run")
    attributes, tables = hdf5file.read(folder / "run")
    assert attributes["status"] == "finished"
    assert (tables["clients"]["update_norm"] > 0).all()
    assert f"{tables['rounds']['test_accuracy'][-1]:.4f}" in invoke("evaluate", folder / "run")


def test_plan_says_why_the_fast_path_is_off(folder: Path, invoke: Callable[..., str]) -> None:
    told = invoke("plan", ROOT / "configs" / "quickstart.yaml", "-s", "model.name=mine", "-s", f"model.pretrained={folder}")
    told = " ".join(told.replace("│", " ").split())
    if "no_causal_mask" in (folder / "open_clip_config.json").read_text():
        assert "distinct captions at full length (770 tokens), since its text tower is not both causal" in told
    else:
        assert "captions as a tree of 36 tokens" in told


@pytest.mark.mpi
@pytest.mark.long
def test_rank_0_alone_fetches_what_all_ranks_then_read(
    mpiexec: list[str], python: list[str], tmp_path: Path, squares: Path
) -> None:
    config = ModelConfig(name="ViT-B-32", pretrained="none")
    model = load(config, 0, torch.device("cpu")).model
    save_file(fuse(model, model.state_dict()), tmp_path / "weights.safetensors")
    script = [*python, str(ROOT / "tests" / "fetching_ranks.py"), tmp_path / "log", tmp_path / "weights.safetensors"]
    command = ["run", "configs/quickstart.yaml", "-s", "model.name=ViT-B-32", "-s", "model.pretrained=laion2b_s34b_b79k"]
    command += ["-s", "method.name=zeroshot", "-s", "partition.num_clients=2", "-s", "rounds=0"]
    command += ["-s", f"data={{name: hdf5, path: {squares}}}"]
    result = subprocess.run(
        [*mpiexec, "-n", "2", *map(str, script), *command, "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=400,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "log").read_text() == "0\n"
