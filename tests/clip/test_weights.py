"""Finding weights, reading them, and saying what is wrong with them."""

import json
import pickle
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flora_hpc.clip import weights
from flora_hpc.clip.attention import fuse
from flora_hpc.clip.load import load
from flora_hpc.config import ModelConfig
from flora_hpc.errors import UserError

CPU = torch.device("cpu")
TINY = Path(str(files("flora_hpc.clip.flora_tiny")))
STATE = load_file(TINY / "open_clip_model.safetensors")


def directory(folder: Path, state: dict[str, torch.Tensor], file: str = "open_clip_model.safetensors", **changes: object) -> Path:
    """An open_clip model directory of flora-tiny's architecture."""
    config = json.loads((TINY / weights.CONFIG_FILE).read_text())
    config["model_cfg"] |= changes
    (folder / weights.CONFIG_FILE).write_text(json.dumps(config))
    if file.endswith(".safetensors"):
        save_file(state, folder / file)
    else:
        torch.save(state, folder / file)
    return folder


def refusal(**config: str) -> str:
    with pytest.raises(UserError) as error:
        load(ModelConfig(**config), 0, CPU)
    return str(error.value)


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin", "weights.pt"])
def test_a_directory_of_any_format_gives_the_model_it_describes(tmp_path: Path, file: str) -> None:
    clip = load(ModelConfig(name="my own", pretrained=str(directory(tmp_path, STATE, file))), 0, CPU)
    fused = fuse(clip.model, clip.model.state_dict())
    assert set(fused) == set(STATE)
    assert all(fused[name].equal(tensor.float()) for name, tensor in STATE.items())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(clip.model.encode_image(x), load(ModelConfig(), 0, CPU).model.encode_image(x))


def test_a_training_checkpoint_with_its_state_dict_inside(tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in STATE.items()}
    directory(tmp_path, {"epoch": 3, "state_dict": state, "optimizer": {"lr": [0.1]}}, "epoch_3.pt")  # type: ignore[dict-item]
    clip = load(ModelConfig(name="mine", pretrained=str(tmp_path)), 0, CPU)
    assert clip.model.ln_final.weight.equal(STATE["ln_final.weight"].float())


def test_torchs_old_format_too(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert weights.read(tmp_path / "old.pt")["ln_final.bias"].equal(STATE["ln_final.bias"])


def test_preprocessing_and_quick_gelu_are_those_of_the_directory(tmp_path: Path) -> None:
    folder = directory(tmp_path, STATE, quick_gelu=True)
    config = json.loads((folder / weights.CONFIG_FILE).read_text())
    config["preprocess_cfg"] |= {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
    (folder / weights.CONFIG_FILE).write_text(json.dumps(config))
    clip = load(ModelConfig(name="mine", pretrained=str(folder)), 0, CPU)
    assert type(clip.model.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    from PIL import Image

    assert clip.preprocess(Image.new("RGB", (40, 30), (255, 255, 255))).equal(torch.ones(3, 32, 32))


def test_a_wrong_file_is_told_what_is_missing_surplus_and_misshapen(tmp_path: Path) -> None:
    wrong = dict(STATE)
    del wrong["ln_final.weight"]
    wrong["classifier"] = torch.zeros(3)
    wrong["visual.proj"] = torch.zeros(192, 64)
    message = refusal(name="mine", pretrained=str(directory(tmp_path, wrong)))
    assert "1 tensor missing (ln_final.weight)" in message
    assert "1 tensor surplus (classifier)" in message
    assert "1 tensor of another shape (visual.proj (192 x 64 in the file, 192 x 128 in the model))" in message


def test_a_file_of_another_model_is_told_so_in_few_words(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "tiny.safetensors")
    message = refusal(name="ViT-B-32", pretrained=str(tmp_path / "tiny.safetensors"))
    assert "tensors missing (" in message
    assert "positional_embedding (77 x 128 in the file, 77 x 512 in the model)" in message
    assert len(message) < 1200


def test_a_directory_of_another_architecture_than_the_name_says(tmp_path: Path) -> None:
    message = refusal(name="ViT-B-32", pretrained=str(directory(tmp_path, STATE)))
    assert "holds another architecture than ViT-B-32: its embed_dim is 128, not 512" in message


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code of a checkpoint was run')",)


def test_pickled_code_is_never_run(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE, "extra": Evil()}, tmp_path / "evil.pt")
    message = refusal(name="ViT-B-32", pretrained=str(tmp_path / "evil.pt"))
    assert "it holds pickled code, which is never run; save its state dict alone, best as .safetensors" in message


@pytest.mark.parametrize("content", [b"", b"not weights", pickle.dumps([1, 2])], ids=["empty", "text", "pickle"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_that_is_no_checkpoint(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    assert str(path) in refusal(name="ViT-B-32", pretrained=str(path))


def test_a_directory_without_a_configuration(tmp_path: Path) -> None:
    assert (
        "has no open_clip_config.json with a model_cfg of embed_dim, vision_cfg and text_cfg; mend it, or give the weights file"
        in refusal(name="x", pretrained=str(tmp_path))
    )


def test_a_tag_that_cannot_be_fetched_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(weights.open_clip, "download_pretrained", offline)
    message = refusal(name="ViT-B-32", pretrained="laion2b_s34b_b79k")
    assert (
        "'laion2b_s34b_b79k' of ViT-B-32 is not in the cache and cannot be fetched (ConnectionError: no route to host)" in message
    )
    assert "create_model('ViT-B-32', 'laion2b_s34b_b79k')\" with this HF_HOME" in message


def test_a_tag_brings_its_preprocessing() -> None:
    """MobileCLIP's images are not normalised; CLIP's are."""
    clip = load(ModelConfig(name="MobileCLIP-S1", pretrained="datacompdr"), 0, torch.device("meta"))
    assert clip.model.visual.preprocess_cfg["mean"] == (0.0, 0.0, 0.0)
    clip = load(ModelConfig(name="ViT-B-32", pretrained="laion2b_s34b_b79k"), 0, torch.device("meta"))
    assert clip.model.visual.preprocess_cfg["mean"] == (0.48145466, 0.4578275, 0.40821073)


def test_a_directory_cannot_bring_code(tmp_path: Path) -> None:
    """Hugging Face's tokenizers run a directory's Python when they are told to trust it."""
    text = json.loads((TINY / weights.CONFIG_FILE).read_text())["model_cfg"]["text_cfg"]
    evil = text | {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote_code": True}}
    message = refusal(name="mine", pretrained=str(directory(tmp_path, STATE, text_cfg=evil)))
    assert "asks for trust_remote_code; code of a checkpoint is never run: take it out" in message


def test_a_directory_with_several_weights_files_is_not_guessed_about(tmp_path: Path) -> None:
    directory(tmp_path, STATE, "epoch_1.pt")
    torch.save(STATE, tmp_path / "epoch_10.pt")
    assert "must hold one weights file beside its open_clip_config.json, but holds epoch_1.pt, epoch_10.pt" in refusal(
        name="mine", pretrained=str(tmp_path)
    )


def test_a_snapshot_of_a_hub_has_both_formats_and_safetensors_is_taken(tmp_path: Path) -> None:
    directory(tmp_path, STATE)
    torch.save({}, tmp_path / "open_clip_pytorch_model.bin")
    assert weights.find(ModelConfig(name="mine", pretrained=str(tmp_path))).file == tmp_path / "open_clip_model.safetensors"


@pytest.mark.parametrize("content", ["{}", "[]", '{"model_cfg": []}', '{"model_cfg": {"embed_dim": 128}}', "no json"])
def test_a_broken_configuration_is_refused(tmp_path: Path, content: str) -> None:
    (directory(tmp_path, STATE) / weights.CONFIG_FILE).write_text(content)
    assert "mend it, or give the weights file itself" in refusal(name="ViT-B-32", pretrained=str(tmp_path))


def test_a_folder_that_is_called_like_a_tag_does_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("openai", "none"):
        (tmp_path / name).mkdir()
    assert weights.find(ModelConfig(name="ViT-B-32", pretrained="openai")).tag == "openai"
    assert weights.find(ModelConfig(name="ViT-B-32", pretrained="none")).random


def test_a_path_is_kept_so_that_it_holds_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    save_file(STATE, tmp_path / "w.safetensors")
    for text in ("w.safetensors", "./w.safetensors", "~/w.safetensors"):
        assert ModelConfig(name="ViT-B-32", pretrained=text).pretrained == str(tmp_path / "w.safetensors")
    assert ModelConfig(name="ViT-B-32", pretrained="openai").pretrained == "openai"


def test_a_longer_context_is_interpolated_and_an_impossible_grid_told(tmp_path: Path) -> None:
    state = dict(STATE)
    state["positional_embedding"] = STATE["positional_embedding"][:40].clone()
    assert load(ModelConfig(name="mine", pretrained=str(directory(tmp_path, state))), 0, CPU).model.positional_embedding.shape == (
        77,
        128,
    )
    state["visual.positional_embedding"] = torch.zeros(12, 192)
    message = refusal(name="mine", pretrained=str(directory(tmp_path, state)))
    assert "visual.positional_embedding (12 x 192 in the file, 17 x 192 in the model)" in message


MAPPED = """
import flora_hpc, sys, torch
from flora_hpc.clip.load import load
from flora_hpc.config import ModelConfig
model = load(ModelConfig(name="ViT-S-32-alt", pretrained=sys.argv[1]), 0, torch.device("cpu")).model
sum(float(p.sum()) for p in model.parameters())  # touch every page
print("loaded", flush=True)
sys.stdin.readline()
kinds = {"Rss": 0, "Private_Clean": 0, "Private_Dirty": 0}
mine = False
for line in open("/proc/self/smaps"):
    first = line.split()[0]
    if "-" in first:
        mine = line.rstrip().endswith(sys.argv[1])
    elif mine and first[:-1] in kinds:
        kinds[first[:-1]] += int(line.split()[1]) * 1024
print(kinds["Rss"], kinds["Private_Clean"] + kinds["Private_Dirty"])
"""


def test_ranks_of_a_node_share_the_pages_of_the_weights(tmp_path: Path) -> None:
    """Two processes with a whole ViT-S-32-alt loaded: of its 175 MB hardly anything is a process's own."""
    clip = load(ModelConfig(name="ViT-S-32-alt", pretrained="none"), 0, CPU)
    path = tmp_path / "weights.safetensors"
    save_file({name: tensor.contiguous().clone() for name, tensor in fuse(clip.model, clip.model.state_dict()).items()}, path)
    size = path.stat().st_size
    assert size > 100_000_000
    command = [sys.executable, "-c", MAPPED, str(path)]
    ranks = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for rank in ranks:
        assert rank.stdout is not None
        assert rank.stdout.readline() == "loaded\n"
    for rank in ranks:
        assert rank.stdin is not None
        rank.stdin.write("\n")
        rank.stdin.flush()
        assert rank.stdout is not None
        resident, own = map(int, rank.stdout.readline().split())
        assert resident > 0.98 * size
        assert own < 0.02 * size
    for rank in ranks:
        rank.communicate()


def test_an_image_tower_that_is_dropped_leaves_no_mapping_behind(tmp_path: Path) -> None:
    path = Path(shutil.copy(TINY / "open_clip_model.safetensors", tmp_path))
    state = weights.read(path)
    assert set(state) == set(STATE)

    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count(str(path))

    assert mappings() == 2
    for name in [name for name in state if name.startswith("visual.")]:
        del state[name]
    assert mappings() == 1


@pytest.mark.parametrize("name", ["mine", "ViT-B-32"])
def test_a_weights_file_in_an_open_clip_directory_has_the_directorys_settings(name: str, tmp_path: Path) -> None:
    sizes = weights.open_clip.get_model_config(name) or {}
    directory(tmp_path, STATE, "epoch_7.pt", **sizes, quick_gelu=True)
    save_file(STATE, tmp_path / "other.safetensors")  # the file that is given is the one that counts
    source = weights.find(ModelConfig(name=name, pretrained=str(tmp_path / "epoch_7.pt")))
    assert source.file == tmp_path / "epoch_7.pt"
    assert source.model_cfg["quick_gelu"] is True
    if name == "mine":
        clip = load(ModelConfig(name=name, pretrained=str(source.file)), 0, torch.device("meta"))
        assert type(clip.model.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    message = refusal(name="ViT-B-16", pretrained=str(tmp_path / "epoch_7.pt"))
    assert "holds another architecture than ViT-B-16" in message
    (tmp_path / weights.CONFIG_FILE).write_text("[" * 100_000)
    assert "mend it, or give the weights file from a folder without it" in refusal(name=name, pretrained=str(source.file))


@pytest.mark.parametrize("length", [300, 5000])
def test_a_name_that_is_longer_than_a_path_can_be_is_no_file(length: int) -> None:
    assert "is neither a file, a directory, nor a tag of ViT-B-32" in refusal(name="ViT-B-32", pretrained="w" * length)
