"""The plain path: one client at a time, every image, full-length captions, peft's own LoRA, torch's own optimizers.

This is a straightforward implementation with open_clip and peft. It is the oracle to which tests compare the fast path,
and the baseline of `flora-hpc bench step`. Nothing here uses the fast products of clip/frozen.py.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from flora_hpc.clip.adapters import attach
from flora_hpc.clip.load import Clip
from flora_hpc.clip.text import text_root
from flora_hpc.config import ClientConfig


def loss_of_batch(model: Any, pixels: torch.Tensor, labels: torch.Tensor, class_tokens: torch.Tensor, kind: str) -> torch.Tensor:
    """The loss of one batch: pixels (batch, 3, height, width), labels (batch,), class_tokens (num_classes, context_length).

    `contrastive` encodes the caption of every image and builds the batch x batch matrix; `classification` scores all classes.
    """
    images = model.encode_image(pixels, normalize=True)
    if kind == "contrastive":
        texts = model.encode_text(class_tokens[labels], normalize=True)
        scores = model.logit_scale.exp() * images @ texts.T
        targets = torch.arange(len(labels), device=labels.device)
        return (F.cross_entropy(scores, targets) + F.cross_entropy(scores.T, targets)) / 2
    texts = model.encode_text(class_tokens, normalize=True)
    return F.cross_entropy(model.logit_scale.exp() * images @ texts.T, labels)


@dataclass(frozen=True)
class Prompted:
    """An open_clip model in which learned vectors replace the embeddings of tokens 1..n of every caption (CoOp)."""

    model: Any
    context: torch.Tensor  # (n, width)

    @property
    def logit_scale(self) -> torch.Tensor:
        """The model's own."""
        scale: torch.Tensor = self.model.logit_scale
        return scale

    def encode_image(self, pixels: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        """The model's own."""
        features: torch.Tensor = self.model.encode_image(pixels, normalize=normalize)
        return features

    def encode_text(self, tokens: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        """Captions (num_captions, context_length) int64 -> (num_captions, embed_dim), every position computed."""
        root, _ = text_root(self.model)
        embedded = root.token_embedding(tokens)
        context = self.context.expand(len(tokens), -1, -1)
        x = torch.cat([embedded[:, :1], context, embedded[:, 1 + len(self.context) :]], 1) + root.positional_embedding
        projected = _through(root, x, tokens)
        return F.normalize(projected, dim=-1) if normalize else projected


def encode_cut(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Features of unit length (num_captions, embed_dim) of captions (num_captions, length) int64, cut after the longest one.

    For causal text towers that read the end token: only padding follows that token, and it changes nothing.
    """
    root, _ = text_root(model)
    return F.normalize(_through(root, root.token_embedding(tokens) + root.positional_embedding[: tokens.shape[1]], tokens), dim=-1)


def _through(root: Any, x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Run embedded tokens (num_captions, length, width) through the text tower's modules -> (num_captions, embed_dim)."""
    length = x.shape[1]
    x = root.ln_final(root.transformer(x, attn_mask=root.attn_mask[:length, :length]))
    x = x[torch.arange(len(x), device=x.device), tokens.argmax(1)]
    projected: torch.Tensor = root.text_projection(x) if isinstance(root.text_projection, nn.Linear) else x @ root.text_projection
    return projected


@dataclass(frozen=True)
class Client:
    """One client: its own model, the trained tensors of that model, and torch's optimizer."""

    model: Any  # with encode_image, encode_text and logit_scale
    trained: Mapping[str, torch.Tensor]
    class_tokens: torch.Tensor  # (num_classes, context_length) int64
    kind: str  # of loss
    optimizer: torch.optim.Optimizer

    def step(self, pixels: torch.Tensor, labels: torch.Tensor) -> float:
        """Take one step; the gradients stay in the trained tensors. Returns the loss."""
        loss = loss_of_batch(self.model, pixels, labels, self.class_tokens, self.kind)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.item()

    def assign(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy these values into the trained tensors."""
        with torch.no_grad():
            for name, tensor in tensors.items():
                self.trained[name].copy_(tensor)


def lora_client(
    model: nn.Module, tensors: Mapping[str, torch.Tensor], alpha: float, class_tokens: torch.Tensor, config: ClientConfig
) -> Client:
    """A client that trains peft's LoRA (`<layer>.lora_A`, `<layer>.lora_B`) on `model`; `model` is changed.

    The attention of `model` must be unfused (clip.attention.unfuse): peft does not reach the output projection of
    nn.MultiheadAttention, and an adapter there would have no effect. All other layers may be as open_clip makes them.
    """
    peft_model = attach(model, tensors, alpha)
    clip_model = peft_model.base_model.model
    trained = {name: clip_model.get_parameter(f"{name}.default.weight") for name in tensors}
    return Client(clip_model, trained, class_tokens, config.loss, make_optimizer(list(trained.values()), config))


def prompt_client(
    model: nn.Module, tensors: Mapping[str, torch.Tensor], class_tokens: torch.Tensor, config: ClientConfig
) -> Client:
    """A client that trains the vectors `context` in front of the class names; `model` is as open_clip makes it, or unfused."""
    context = tensors["context"].detach().clone().requires_grad_()
    return Client(Prompted(model, context), {"context": context}, class_tokens, config.loss, make_optimizer([context], config))


def train_client(
    clip: Clip,
    tensors: Mapping[str, torch.Tensor],
    alpha: float,
    class_tokens: torch.Tensor,
    batches: list[tuple[torch.Tensor, torch.Tensor]],
    config: ClientConfig,
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Train one client's adapter (`<layer>.lora_A`, `<layer>.lora_B`) on batches of (pixels, labels).

    Returns the update of every tensor and the loss of every step; `clip` is left as it was.
    """
    client = lora_client(deepcopy(clip.model), tensors, alpha, class_tokens, config)
    losses = [client.step(pixels, labels) for pixels, labels in batches]
    return {name: parameter.detach() - tensors[name] for name, parameter in client.trained.items()}, losses


def make_optimizer(params: list[torch.Tensor], config: ClientConfig) -> torch.optim.Optimizer:
    """The optimizer of `config`, from torch.optim."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(params, config.lr, config.momentum, weight_decay=config.weight_decay)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(params, config.lr, config.betas, config.eps, config.weight_decay)
