import json
import warnings
from copy import deepcopy
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors import safe_open

from flora_hpc.clip import adapters
from flora_hpc.clip.load import load
from flora_hpc.config import ModelConfig
from flora_hpc.methods import flora
from tests.conftest import setting


def test_peft_loads_what_was_saved_and_computes_the_same(
    split_model: open_clip.CLIP, captions: torch.Tensor, tmp_path: Path
) -> None:
    import peft

    method = flora.build(flora.Options(name="flora", rank=2, alpha=3.0), setting(split_model, captions))
    tensors = method.init(np.random.default_rng(0))
    tensors = {name: tensor.double() + 0.1 for name, tensor in tensors.items()}
    adapters.save(tmp_path / "adapter", deepcopy(split_model), tensors, method.alpha, "small", "flora")

    fresh = deepcopy(split_model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = peft.PeftModel.from_pretrained(fresh, str(tmp_path / "adapter"))
    features = torch.randn(1, 6, 8, dtype=torch.float64)
    one_client = {name: tensor[None] for name, tensor in tensors.items()}
    scores = method.logits(one_client, method.classes(one_client, None), features, None)
    text = loaded.base_model.model.encode_text(captions, normalize=True)
    expected = split_model.logit_scale.exp() * F.normalize(features, dim=-1) @ text.T
    torch.testing.assert_close(scores, expected, rtol=1e-10, atol=1e-10)
    layers = [name for name, module in loaded.named_modules() if hasattr(module, "lora_A")]
    assert len(layers) == 2, "adapters sit on the text tower's output projections, and nowhere in the image tower"


def test_the_file_is_the_same_bytes_for_the_same_adapter(
    split_model: open_clip.CLIP, captions: torch.Tensor, tmp_path: Path
) -> None:
    method = flora.build(flora.Options(name="flora"), setting(split_model, captions))
    for name in ("a", "b"):
        adapters.save(tmp_path / name, deepcopy(split_model), method.init(np.random.default_rng(0)), method.alpha, "small", "flora")
    assert oct((tmp_path / "a" / "adapter_model.safetensors").stat().st_mode) == oct((tmp_path / "a" / "README.md").stat().st_mode)
    first, second = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("a", "b"))
    assert first == second


def flora_tensors(model: open_clip.CLIP, captions: torch.Tensor) -> dict[str, torch.Tensor]:
    """Updates of rank 2 with no zeros in them, as views of one buffer, as a run hands them over."""
    method = flora.build(flora.Options(name="flora", rank=2, alpha=3.0), setting(model, captions))
    values = torch.randn(1, method.num_params, generator=torch.Generator().manual_seed(0))
    return method.unpack(values[0])


def file_contents(file: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    with safe_open(file, "pt") as opened:
        return opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def test_the_files_hold_what_peft_itself_writes(tmp_path: Path) -> None:
    """Fields of the configuration that are left out are PEFT's defaults."""
    import peft

    clip = load(ModelConfig(), 0, torch.device("cpu"))
    tensors = flora_tensors(clip.model, clip.tokenize(["a photo of a cat"]))
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    adapters.save(ours, clip.model, tensors, 3.0, clip.name, "flora")
    adapters.attach(deepcopy(clip.model), tensors, 3.0).save_pretrained(str(theirs))

    assert {file.name for file in ours.iterdir()} == {file.name for file in theirs.iterdir()}
    (our_facts, our_tensors), (their_facts, their_tensors) = (
        file_contents(folder / "adapter_model.safetensors") for folder in (ours, theirs)
    )
    assert our_facts == their_facts
    assert our_tensors.keys() == their_tensors.keys()
    for name, tensor in their_tensors.items():
        assert our_tensors[name].dtype == tensor.dtype
        assert our_tensors[name].equal(tensor)

    our_config, their_config = (json.loads((folder / "adapter_config.json").read_text()) for folder in (ours, theirs))
    assert "peft_version" not in our_config, "PEFT 0.17 does not know it and warns; later ones put in their own"
    their_config.pop("peft_version", None)
    assert {name: their_config[name] for name in our_config} == our_config
    peft.LoraConfig().save_pretrained(str(tmp_path / "defaults"))
    defaults = json.loads((tmp_path / "defaults" / "adapter_config.json").read_text())
    rest = their_config.keys() - our_config.keys()
    assert {name: their_config[name] for name in rest} == {name: defaults[name] for name in rest}


def test_pefts_own_loader_gives_flora_tiny_the_outputs_of_attach(tmp_path: Path) -> None:
    import peft

    clip = load(ModelConfig(), 0, torch.device("cpu"))
    captions = clip.tokenize(["a photo of a cat", "the number two"])
    tensors = flora_tensors(clip.model, captions)
    adapters.save(tmp_path / "adapter", clip.model, tensors, 3.0, clip.name, "flora")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT warns of keys that it misses or does not know
        loaded = peft.PeftModel.from_pretrained(deepcopy(clip.model), str(tmp_path / "adapter")).base_model.model
    attached = adapters.attach(deepcopy(clip.model), tensors, 3.0).base_model.model
    assert loaded.encode_text(captions).equal(attached.encode_text(captions))
    assert not loaded.encode_text(captions).allclose(clip.model.encode_text(captions))


def test_saving_leaves_the_model_as_it_was(split_model: open_clip.CLIP, captions: torch.Tensor, tmp_path: Path) -> None:
    layers = [(name, type(layer)) for name, layer in split_model.named_modules()]
    values = deepcopy(split_model.state_dict())
    adapters.save(tmp_path / "adapter", split_model, flora_tensors(split_model, captions), 3.0, "small", "flora")
    assert [(name, type(layer)) for name, layer in split_model.named_modules()] == layers
    assert split_model.state_dict().keys() == values.keys()
    assert all(split_model.state_dict()[name].equal(value) for name, value in values.items())
