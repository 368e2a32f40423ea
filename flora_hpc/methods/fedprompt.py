"""FedPrompt: the words before the class name become trained vectors, as in CoOp and PromptFL.

A prompt is `<context> <class name>.`, whatever the caption of the data set. The vectors start as the embeddings of the words of
`context`. With `num_tokens`, that many vectors start at random, with standard deviation 0.02 (Zhou et al., arXiv 2109.01134;
federated by Guo et al., arXiv 2208.11625).
"""

import numpy as np
import torch
from pydantic import Field, model_validator

from flora_hpc.clip.text import TextTower, text_root, why_not
from flora_hpc.errors import UserError
from flora_hpc.methods._method import CaptionRows, Method, Noise, Setting, Tensors, cosine_scores, costs_of, describe
from flora_hpc.plugins import BaseOptions

STAND_IN = "X"  # one token in place of each random vector, as in CoOp


class Options(BaseOptions):
    """Number and initial values of the vectors."""

    context: str = Field("a photo of a", description="words that the vectors start from")
    num_tokens: int | None = Field(None, ge=1, description="start from this many random vectors instead")

    @model_validator(mode="after")
    def _not_empty(self) -> "Options":
        if self.num_tokens is None and not self.context.strip():
            raise ValueError("method.context: is empty; give some words, or method.num_tokens for random vectors")
        return self


def build(options: Options, setting: Setting) -> Method:
    setting.needs_classes("fedprompt")
    clip = setting.clip
    if (reason := why_not(clip.model)) is not None:
        raise UserError(f"method.name: fedprompt needs CLIP's own text tower, but of {clip.name} {reason}; take another model")
    context = " ".join([STAND_IN] * options.num_tokens) if options.num_tokens else options.context.strip()
    (start,) = clip.tokenize([context])
    num_tokens = int(start.argmax()) - 1  # without the start and the end token
    root, _ = text_root(clip.model)
    names = clip.tokenize([f"{name}." for name in setting.wordings])
    length = len(root.positional_embedding)
    if int(names.argmax(1).max()) + num_tokens + 1 > length or (options.num_tokens or 0) > num_tokens:
        key = "num_tokens" if options.num_tokens else "context"
        raise UserError(f"method.{key}: leaves no room for the longest class name in {length} tokens; make it shorter")
    prompts = tuple(f"{context} {name}." for name in setting.wordings)
    tower = TextTower(clip.model, clip.tokenize(list(prompts)))
    words, scale = root.token_embedding.weight[start[1 : num_tokens + 1]], clip.model.logit_scale.exp()

    def init(rng: np.random.Generator) -> dict[str, torch.Tensor]:
        if options.num_tokens:
            return {"context": torch.from_numpy(0.02 * rng.standard_normal(words.shape, np.float32))}
        return {"context": words}

    def classes(tensors: Tensors, noise: Noise, caption_rows: CaptionRows = None) -> torch.Tensor:
        return tower(context=tensors["context"], caption_rows=caption_rows)

    def logits(tensors: Tensors, classes: torch.Tensor, inputs: torch.Tensor, noise: Noise) -> torch.Tensor:
        return cosine_scores(scale, inputs, classes)

    return Method(
        {"context": tuple(words.shape)},
        init,
        classes,
        logits,
        how=describe(False, tower),
        costs=costs_of(tower),
        prompts=prompts,
    )
