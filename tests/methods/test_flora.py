import numpy as np
import open_clip
import pytest
import torch
from pydantic import ValidationError

from flora_hpc.clip.load import load
from flora_hpc.config import ModelConfig
from flora_hpc.data.holdings import Partition
from flora_hpc.errors import UserError
from flora_hpc.methods import flora
from flora_hpc.methods._method import Setting
from tests.conftest import setting

NOBODY = Partition(np.zeros(0, np.int64), np.zeros(1, np.int64))


def test_the_papers_setting_on_vit_b_32_has_24576_numbers_and_98304_bytes() -> None:
    clip = load(ModelConfig(name="ViT-B-32", pretrained="none"), 0, torch.device("meta"))
    method = flora.build(
        flora.Options(name="flora"), Setting(clip, ("cat",), ("a photo of a cat.",), NOBODY, np.zeros(0, np.int64))
    )
    assert method.num_params == 24_576
    assert method.payload_bytes == 98_304


def test_adapters_start_as_in_the_paper(split_model: open_clip.CLIP, captions: torch.Tensor) -> None:
    """A ~ N(0, 1/rank), B = 0: the model starts unchanged."""
    method = flora.build(flora.Options(name="flora", rank=4), setting(split_model, captions))
    draws = [method.init(np.random.default_rng(seed)) for seed in range(50)]
    values = torch.stack([t for draw in draws for name, t in draw.items() if name.endswith("lora_A")])
    assert values.mean().item() == pytest.approx(0, abs=4 * 0.5 / values.numel() ** 0.5)
    assert values.std().item() == pytest.approx(0.5, rel=0.05)
    assert all(t.abs().max() == 0 for draw in draws for name, t in draw.items() if name.endswith("lora_B"))


def test_pack_undoes_unpack(split_model: open_clip.CLIP, captions: torch.Tensor) -> None:
    method = flora.build(flora.Options(name="flora"), setting(split_model, captions))
    flat = torch.arange(method.num_params, dtype=torch.float32)
    assert method.pack(method.unpack(flat)).equal(flat)


def test_a_rank_larger_than_the_layer_is_refused(split_model: open_clip.CLIP, captions: torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"method.rank: 17 is larger than .*out_proj, which is 16 x 16; lower it"):
        flora.build(flora.Options(name="flora", rank=17), setting(split_model, captions))


@pytest.mark.parametrize("targets", [[], ["text.out_proj", "text.out_proj"], ["visual.out_proj"]])
def test_targets_must_exist_and_stand_once(targets: list[str]) -> None:
    with pytest.raises(ValidationError):
        flora.Options(name="flora", targets=targets)
