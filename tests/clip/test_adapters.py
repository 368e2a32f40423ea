import warnings
from copy import deepcopy
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F

from flora_hpc.clip import adapters
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
    mine = {name: tensor[None] for name, tensor in tensors.items()}
    scores = method.logits(mine, method.classes(mine, None), features, None)
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
