"""The plain path: one client at a time, every image, full-length captions, peft's own LoRA, torch's own optimizers.

This is what a straightforward implementation does. It is the oracle that tests hold the fast path against.
"""

from collections.abc import Mapping
from copy import deepcopy

import torch
import torch.nn.functional as F

from flora_hpc.clip.adapters import attach
from flora_hpc.clip.load import Clip
from flora_hpc.config import ClientConfig


def loss_of_batch(
    model: torch.nn.Module, pixels: torch.Tensor, labels: torch.Tensor, class_tokens: torch.Tensor, kind: str
) -> torch.Tensor:
    """The loss of one batch: pixels (batch, 3, height, width), labels (batch,), class_tokens (num_classes, context_length).

    `contrastive` encodes the caption of every image and builds the batch x batch matrix; `classification` scores all classes.
    """
    images = model.encode_image(pixels, normalize=True)  # type: ignore[operator]
    if kind == "contrastive":
        texts = model.encode_text(class_tokens[labels], normalize=True)  # type: ignore[operator]
        scores = model.logit_scale.exp() * images @ texts.T  # type: ignore[operator]
        targets = torch.arange(len(labels))
        return (F.cross_entropy(scores, targets) + F.cross_entropy(scores.T, targets)) / 2
    texts = model.encode_text(class_tokens, normalize=True)  # type: ignore[operator]
    return F.cross_entropy(model.logit_scale.exp() * images @ texts.T, labels)  # type: ignore[operator]


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
    wrapped = attach(deepcopy(clip.model), tensors, alpha)
    model = wrapped.base_model.model
    trained = {name: model.get_parameter(f"{name}.default.weight") for name in tensors}
    optimizer = make_optimizer(list(trained.values()), config)
    losses = []
    for pixels, labels in batches:
        loss = loss_of_batch(model, pixels, labels, class_tokens, config.loss)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return {name: parameter.detach() - tensors[name] for name, parameter in trained.items()}, losses


def make_optimizer(params: list[torch.Tensor], config: ClientConfig) -> torch.optim.Optimizer:
    """What `config` names, from torch.optim."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(params, config.lr, config.momentum, weight_decay=config.weight_decay)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(params, config.lr, config.betas, config.eps, config.weight_decay)
