"""A run's directory becomes a directory for another program, whole or not at all."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import open_clip
import peft
import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from flora_hpc.cli.export import export as command
from flora_hpc.cli.export import write
from flora_hpc.clip import adapters
from flora_hpc.clip.load import load
from flora_hpc.config import ModelConfig
from flora_hpc.data.datasets import hdf5
from flora_hpc.data.decode import rgb
from flora_hpc.errors import UserError
from flora_hpc.methods._lora import find_layers
from flora_hpc.owner import claim, living
from flora_hpc.records import split
from tests import digits_file
from tests.conftest import ROOT

app = typer.Typer()
app.command()(command)
HEADS = ("text.head", "image.head")
TINY = {"name": "flora-tiny"}
RN50 = {"name": "RN50", "pretrained": "none"}


def export(*arguments: object, expect: int = 0) -> str:
    """What the command prints."""
    result = CliRunner(env={"COLUMNS": "300"}).invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == expect, result.output
    return result.output


def run_of(folder: Path, method: str, model: dict[str, str] = TINY) -> Path:
    """A run directory as `flora-hpc run` leaves it, before its adapter is saved."""
    folder.mkdir()
    (folder / "run.h5").touch()
    (folder / "config.yaml").write_text(json.dumps({"model": model, "method": {"name": method}}))
    return folder


def lora_on(model: Any, targets: tuple[str, ...] = HEADS) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path, layer in find_layers(model, targets, "the model").items():  # type: ignore[arg-type]
        tensors[f"{path}.lora_A"] = torch.full((2, layer.in_features), 0.01)
        tensors[f"{path}.lora_B"] = torch.full((layer.out_features, 2), 0.5)
    return tensors


@pytest.fixture(scope="module")
def tiny() -> Any:
    return load(ModelConfig(), 0, torch.device("cpu")).model


@pytest.fixture
def flora_run(tiny: Any, tmp_path: Path) -> Path:
    folder = run_of(tmp_path / "run", "flora")
    adapters.save(folder / "adapter", deepcopy(tiny), lora_on(tiny), 3.0, "flora-tiny", "flora")
    return folder


def plain_run(folder: Path, method: str, tensors: dict[str, torch.Tensor]) -> Path:
    run_of(folder, method)
    adapters.save(folder / "adapter", torch.nn.Module(), tensors, None, "flora-tiny", method)
    return folder


# --- what is written


def test_open_clip_loads_the_merged_weights(flora_run: Path, tiny: Any) -> None:
    said = export(flora_run, "--to", "open_clip")
    out = flora_run / "export-open_clip"
    assert said == f"wrote {out}; load it with open_clip.create_model('local-dir:{out}')\n"
    assert {path.name for path in out.iterdir()} == {"README.md", "open_clip_config.json", "open_clip_model.safetensors"}
    merged = open_clip.create_model(f"local-dir:{out}")
    added = 3.0 * 2 * 0.5 * 0.01  # alpha * rank * B * A
    torch.testing.assert_close(merged.text_projection, tiny.text_projection.linear.weight.T + added)
    torch.testing.assert_close(merged.visual.proj, tiny.visual.proj.linear.weight.T + added)
    assert merged.token_embedding.weight.equal(tiny.token_embedding.weight)


def test_peft_loads_a_copy_of_the_adapter(flora_run: Path, tiny: Any, tmp_path: Path) -> None:
    export(flora_run, "--to", "peft", "--out", tmp_path / "new" / "place")
    names = {path.name for path in (flora_run / "adapter").iterdir()}
    assert {path.name for path in (tmp_path / "new" / "place").iterdir()} == names
    assert all((tmp_path / "new" / "place" / name).read_bytes() == (flora_run / "adapter" / name).read_bytes() for name in names)
    loaded = peft.PeftModel.from_pretrained(deepcopy(tiny), str(tmp_path / "new" / "place"))
    assert loaded.peft_config["default"].lora_alpha == 6.0


def test_transformers_gets_a_peft_adapter_under_its_own_names(flora_run: Path) -> None:
    export(flora_run / "run.h5", "--to", "transformers")
    out = flora_run / "export-transformers"
    config = peft.LoraConfig.from_pretrained(str(out))
    assert (config.r, config.lora_alpha, config.target_modules) == (2, 6.0, "text_projection|visual_projection")
    assert set(load_file(out / "adapter_model.safetensors")) == {
        f"base_model.model.{head}_projection.lora_{part}.weight" for head in ("text", "visual") for part in "AB"
    }


def test_an_export_that_a_signal_ends_leaves_nothing(tmp_path: Path) -> None:
    def fill(new: Path) -> None:
        new.mkdir()
        (new / "weights").write_text("half")
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with pytest.raises(SystemExit, match="143"):
        write(tmp_path / "out", fill)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_goes_with_the_next_one(tmp_path: Path) -> None:
    me = living.this_process()
    owners = {
        "dead": replace(me, started="1"),
        "lives": me,
        "elsewhere": replace(me, boot="another"),
        "long ago": replace(me, boot="another"),
    }
    for name, owner in owners.items():
        (tmp_path / f".export-{name}" / "new").mkdir(parents=True)
        claim.path(tmp_path / f".export-{name}", 1).write_text(json.dumps(asdict(owner)))
    (tmp_path / ".export-of-another-program").mkdir()
    for name in ("long ago", "of-another-program"):
        os.utime(tmp_path / f".export-{name}", (0, 0))
    write(tmp_path / "out", lambda new: new.mkdir())
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".export-lives", ".export-elsewhere", ".export-of-another-program"}


def test_the_files_can_be_read_by_whoever_can_read_the_directory(flora_run: Path) -> None:
    export(flora_run, "--to", "open_clip")
    out = flora_run / "export-open_clip"
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {out.stat().st_mode & 0o666}


def test_a_directory_that_is_there_but_empty_will_do(flora_run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    export(flora_run, "--to", "peft", "--out", tmp_path / "empty")
    assert (tmp_path / "empty" / "adapter_model.safetensors").is_file()


def test_a_model_directory_of_ones_own_keeps_its_architecture(flora_run: Path, tiny: Any, tmp_path: Path) -> None:
    """What was exported can be trained on and exported again."""
    export(flora_run, "--to", "open_clip")
    second = run_of(tmp_path / "second", "flora", {"name": "mine", "pretrained": str(flora_run / "export-open_clip")})
    adapters.save(second / "adapter", deepcopy(tiny), lora_on(tiny), 3.0, "mine", "flora")
    export(second, "--to", "open_clip")
    merged = open_clip.create_model(f"local-dir:{second / 'export-open_clip'}")
    torch.testing.assert_close(merged.visual.proj, tiny.visual.proj.linear.weight.T + 2 * 0.03)


def in_former_names(adapter: Path) -> None:
    """Rewrite an adapter as version 0.1.0 wrote it, whose layers had open_clip's own names."""
    former = {"attn.o_proj": "attn.out_proj", "mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj"}
    tensors = load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    for new, old in former.items():
        tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
        config["target_modules"] = config["target_modules"].replace(re.escape(new), re.escape(old))
    save_file(tensors, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps(config))


def test_an_adapter_of_before_is_exported_as_todays(tiny: Any, tmp_path: Path) -> None:
    """PEFT would load the former names on a model that is not split, and change nothing."""
    tensors = lora_on(tiny, ("text.out_proj", "image.mlp"))
    for name in ("former", "today"):
        run = run_of(tmp_path / name, "flora")
        adapters.save(run / "adapter", deepcopy(tiny), tensors, 3.0, "flora-tiny", "flora")
        if name == "former":
            in_former_names(run / "adapter")
        for to in ("peft", "transformers", "open_clip"):
            export(run, "--to", to)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert set(adapters.load(tmp_path / "former" / "adapter", shapes, "flora-tiny", 3.0)) == set(tensors)
    for file in ("peft/adapter_model", "transformers/adapter_model", "open_clip/open_clip_model"):
        former, today = (load_file(tmp_path / name / f"export-{file}.safetensors") for name in ("former", "today"))
        assert set(former) == set(today)
        assert all(former[name].equal(tensor) for name, tensor in today.items())


def test_a_whole_clip_model_warns_of_class_names_that_a_processor_reads_otherwise(flora_run: Path) -> None:
    with h5py.File(flora_run / "run.h5", "w") as file:
        split.write(file, split.Split(np.array([0]), np.array([[1, 1]]), ("black &amp; white", "grey")))
    said = export(flora_run, "--to", "transformers", "--merged")
    assert "other tokens than the run for 1 of 2 class names, such as 'black &amp; white'" in said
    assert "README.md says how to clean them" in said


def test_a_whole_clip_model_says_which_way_it_is_loaded(flora_run: Path) -> None:
    said = export(flora_run, "--to", "transformers", "--merged")
    out = flora_run / "export-transformers-merged"
    assert f"transformers.CLIPModel.from_pretrained('{out}')" in said
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {out.stat().st_mode & 0o666}


@pytest.mark.parametrize(("to", "right"), [("peft", "--to open_clip or --to transformers --merged"), ("transformers", "--merged")])
def test_an_adapter_alone_names_the_merged_way(flora_run: Path, to: str, right: str) -> None:
    said = export(flora_run, "--to", to)
    assert "it is the adapter alone" in said
    assert right in said
    assert "--to transformers --merged" in (flora_run / f"export-{to}" / "README.md").read_text()


# --- without flora_hpc


@pytest.mark.long
def test_other_programs_get_the_runs_own_accuracy_and_peft_refuses_an_unsplit_model(
    invoke: Callable[..., str], tiny: Any, tmp_path: Path
) -> None:
    run, file = tmp_path / "run", digits_file.write(tmp_path / "few.h5", 300, 103)
    settings = [f"data={{name: hdf5, path: {file}}}", "rounds=2", "client.lr=0.002"]
    words = [word for setting in settings for word in ("-s", setting)]
    invoke("run", ROOT / "configs" / "quickstart.yaml", "--out", run, "--view", "plain", *words)
    for arguments in (["open_clip"], ["transformers", "--merged"], ["peft"]):
        invoke("export", run, "--to", *arguments)
    mixed = run_of(tmp_path / "mixed", "flora")  # an unsplit model has some of these layers
    adapters.save(mixed / "adapter", deepcopy(tiny), lora_on(tiny, ("text.out_proj", "text.mlp", "image.mlp")), 1.0, "x", "flora")
    export(mixed, "--to", "peft", "--out", run / "export-mixed")
    data = hdf5.build(hdf5.Options(name="hdf5", path=str(file)))
    images = np.stack([np.asarray(rgb(image)) for image in data.images.raw(data.test.tolist())])
    np.savez(tmp_path / "images.npz", images=images, labels=data.images.labels[data.test], captions=np.array(data.captions))
    base = str(files("flora_hpc.clip.flora_tiny"))
    command = [sys.executable, "-I", ROOT / "tests" / "cli" / "other_program.py", tmp_path / "images.npz", base, run]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path, timeout=240)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    with h5py.File(run / "run.h5") as file:
        before, *_, after = file["rounds"]["test_accuracy"]
    assert after > before + 0.01
    for way in ("open_clip", "pil"):
        assert found[way] / len(images) == pytest.approx(after, abs=1e-9)
    assert abs(found["torchvision"] / len(images) - after) < 0.01
    assert found["scores_apart"] < 1e-5
    for adapter in ("peft", "mixed"):
        assert found[adapter].startswith("Target modules ")
        assert "not found in the base model" in found[adapter]


# --- mistakes


@pytest.fixture(scope="module")
def bad_runs(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run_of(folder / "unfinished", "flora")
    plain_run(folder / "fedlc", "fedlc", {"classifier.weight": torch.ones(10, 128), "classifier.bias": torch.ones(10)})
    plain_run(folder / "fedfft", "fedfft", {name: value.detach() for name, value in tiny.named_parameters()})
    resnet = load(ModelConfig(**RN50), 0, torch.device("cpu")).model
    text = lora_on(resnet, ("text.out_proj",))
    for name, model in (("resnet", RN50), ("swapped", TINY)):
        run_of(folder / name, "flora", model)
        adapters.save(folder / name / "adapter", deepcopy(resnet), text, 1.0, "RN50", "flora")
    run_of(folder / "broken", "flora")
    (folder / "broken" / "adapter").mkdir()
    (folder / "broken" / "adapter" / "adapter_model.safetensors").write_bytes(b"not tensors")
    return folder


@pytest.mark.parametrize(
    ("run", "to", "message"),
    [
        ("nowhere", "peft", "holds no run"),
        ("unfinished", "peft", "holds no adapter .*only a run that finished has one: go on with it .*--resume"),
        ("broken", "open_clip", "cannot be read as safetensors"),
        ("fedlc", "open_clip", "such as classifier.bias, has no place in open_clip's weights; read .* adapter/trained.safetensors"),
        ("fedlc", "peft", "trained no low-rank adapter"),
        ("fedfft", "peft", "trained no low-rank adapter.*try --to open_clip"),
        ("fedfft", "transformers", "trained no low-rank adapter.*try --to open_clip"),
        ("fedfft", "peft --merged", "--merged: PEFT's files hold the adapter alone; .*--to open_clip"),
        ("fedlc", "transformers --merged", "has no place in open_clip's weights"),
        ("resnet", "transformers --merged", "it is a CLIP whose image tower is a ModifiedResNet; use --to open_clip"),
        ("resnet", "transformers", "it is a CLIP whose image tower is a ModifiedResNet; use --to open_clip"),
        (
            "swapped",
            "open_clip",
            "the adapter belongs to another model: .* is 512 x 512, in the model of config.yaml it is 128 x 128",
        ),
        ("swapped", "transformers", "the adapter belongs to another model"),
    ],
)
def test_what_cannot_be_written_is_said_and_nothing_is_left(bad_runs: Path, run: str, to: str, message: str) -> None:
    before = sorted(bad_runs.rglob("*"))
    with pytest.raises(UserError, match=message) as said:
        export(bad_runs / run, "--to", *to.split(), "--out", bad_runs / "new" / "out")
    assert "\n" not in str(said.value)
    assert sorted(bad_runs.rglob("*")) == before


def test_an_unknown_form_is_answered_with_the_known_ones(flora_run: Path) -> None:
    assert "'peft', 'open_clip', 'transformers'" in export(flora_run, "--to", "onnx", expect=2)


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_what_is_there_already_is_left_alone(flora_run: Path, kind: str) -> None:
    out = flora_run / ("adapter" if kind == "directory" else "run.h5")
    before = {path: path.stat().st_mtime_ns for path in flora_run.rglob("*")}
    with pytest.raises(UserError, match="exists already; choose another directory, or remove this one"):
        export(flora_run, "--to", "peft", "--out", out)
    assert {path: path.stat().st_mtime_ns for path in flora_run.rglob("*")} == before


def test_a_write_that_fails_half_way_leaves_nothing(flora_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("flora_hpc.clip.export.save_file", full)
    before = sorted(flora_run.rglob("*"))
    for to in ("open_clip", "transformers", "transformers --merged"):
        with pytest.raises(UserError, match=r"cannot be written \(No space left on device\); choose a directory that can"):
            export(flora_run, "--to", *to.split())
    assert sorted(flora_run.rglob("*")) == before
