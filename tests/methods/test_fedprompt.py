"""Prompts that leave no room for the class names."""

import pytest
import torch
from pydantic import ValidationError

from flora_hpc.clip.load import load
from flora_hpc.config import ModelConfig
from flora_hpc.data.holdings import Partition
from flora_hpc.errors import UserError
from flora_hpc.methods import fedprompt
from flora_hpc.methods._method import Method, Setting

import numpy as np  # isort: skip


def build(*names: str, **options: object) -> Method:
    clip = load(ModelConfig(), 0, torch.device("cpu"))
    nobody = Partition(np.zeros(0, np.int64), np.zeros(1, np.int64))
    captions = tuple(f"a photo of a {name}." for name in names)
    return fedprompt.build(
        fedprompt.Options(name="fedprompt", **options), Setting(clip, names, captions, nobody, np.zeros(0, np.int64))
    )


def test_vectors_start_as_the_words() -> None:
    clip = load(ModelConfig(), 0, torch.device("cpu"))
    method = build("cat", "dog")
    tokens = clip.tokenize(["a photo of a"])[0, 1:5]
    assert method.init(np.random.default_rng(0))["context"].equal(clip.model.token_embedding.weight[tokens])
    text = torch.nn.functional.normalize(clip.model.encode_text(clip.tokenize(["a photo of a cat.", "a photo of a dog."])), dim=-1)
    start = {name: value[None] for name, value in method.init(np.random.default_rng(0)).items()}
    torch.testing.assert_close(method.classes(start, None)[0], text, rtol=1e-4, atol=1e-5)


def test_random_vectors_are_as_many_as_were_asked_for() -> None:
    method = build("cat", num_tokens=16)
    values = method.init(np.random.default_rng(0))["context"]
    assert values.shape == (16, 128)
    assert values.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    ("options", "key"),
    [({"num_tokens": 70}, "num_tokens"), ({"num_tokens": 200}, "num_tokens"), ({"context": "a " * 75}, "context")],
)
def test_a_prompt_that_would_cut_the_names_is_refused(options: dict[str, object], key: str) -> None:
    with pytest.raises(UserError, match=rf"method.{key}: leaves no room for the longest class name in 77 tokens; make it shorter"):
        build("a bird that sits on a branch", **options)


def test_an_empty_context_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"method.context: is empty; give some words, or method.num_tokens"):
        fedprompt.Options(name="fedprompt", context=" ")
