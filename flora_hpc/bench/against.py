"""Whole rounds against the plain loop that a careful user writes: cached features, cut captions, peft's LoRA, one client at a time.

Both sides train the same clients on the same batches from the same adapter, in turn in one process. The two adapters after the
first round are compared, which shows that both sides compute the same.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from flora_hpc import experiment, extras, firststep, trainer
from flora_hpc.bench import plain
from flora_hpc.bench.methods import processor
from flora_hpc.bench.round import WARM
from flora_hpc.bench.workload import built_alone
from flora_hpc.clip.load import Clip
from flora_hpc.clip.text import why_not
from flora_hpc.comm.launch import Launch
from flora_hpc.config import Config, EvaluateConfig
from flora_hpc.errors import UserError
from flora_hpc.round import State, participants, play
from flora_hpc.setup import Setup, Site
from flora_hpc.versions import versions


def check(config: Config, me: Launch) -> None:
    """Raise UserError for settings that the plain loop does not support."""
    extras.need("bench against", "peft")
    if me.size > 1:
        raise UserError(f"bench against: the plain loop is one process, but {me.launcher} started {me.size}; start one")
    if config.method.name != "flora" or any(target.startswith("image") for target in getattr(config.method, "targets", ())):
        raise UserError(f"bench against: the plain loop trains flora on layers of the text tower, not {config.method.name}")
    if getattr(config.method, "dropout", 0.0) or not config.is_fedavg or config.client.optimizer_state != "reset":
        raise UserError("bench against: the plain loop has no dropout, averages by fedavg and starts optimizers afresh; do so, too")
    if config.model.precision != "fp32" or config.comm.device == "cuda" or config.data.name == "pairs":
        raise UserError("bench against: the plain loop is for fp32, CPUs and data with classes; take these")
    if config.rounds < WARM:
        raise UserError(f"rounds: {config.rounds} leaves nothing to measure, since the first one warms up; give at least {WARM}")


@dataclass(frozen=True)
class PlainLoop:
    """FedAvg with peft and torch.optim, as an expert writes it: features are cached and captions are cut."""

    setup: Setup
    client: plain.Client
    features: torch.Tensor  # (num_images, embed_dim), of unit length
    tokens: torch.Tensor  # (num_classes, length of the longest caption) int64

    @classmethod
    def of(cls, setup: Setup, clip: Clip, tokens: torch.Tensor, features: torch.Tensor) -> "PlainLoop":
        """For the setup of a run: `tokens` (num_classes, context_length), `features` (num_images, embed_dim) of any length."""
        if (reason := why_not(clip.model)) is not None:
            raise UserError(f"bench against: the plain loop cuts captions, but {reason}; take another model")
        short_tokens = tokens[:, : int(tokens.argmax(1).max()) + 1]
        start = setup.method.unpack(torch.zeros(setup.method.num_params))
        client = plain.lora_client(deepcopy(clip.model), start, setup.method.alpha or 1.0, short_tokens, setup.client)
        return cls(setup, client, F.normalize(features, dim=-1), short_tokens)

    def play(self, adapter: torch.Tensor, number: int) -> torch.Tensor:
        """Play one round from `adapter` (num_params,); returns the next adapter."""
        setup = self.setup
        mean, total = torch.zeros_like(adapter), 0
        for client in participants(setup, number)[0]:
            batches = trainer.make_batches(np.array([client]), setup.holdings, setup.client, setup.seed, number)
            self.client.assign(setup.method.unpack(adapter))
            optimizer = plain.make_optimizer(list(self.client.trained.values()), setup.client)
            for rows, present in zip(batches.examples[:, 0], batches.present[:, 0], strict=True):
                self.step(optimizer, torch.from_numpy(rows[present]))
            size = int(setup.holdings.sizes(np.array([client]))[0])
            mean += size * (setup.method.pack({name: tensor.detach() for name, tensor in self.client.trained.items()}) - adapter)
            total += size
        return adapter + mean / total

    def step(self, optimizer: torch.optim.Optimizer, rows: torch.Tensor) -> None:
        """One step on the images `rows` (batch,)."""
        model, images, labels = self.client.model, self.features[rows], self.setup.labels[rows]
        captions = self.tokens[labels] if self.setup.client.loss == "contrastive" else self.tokens
        scores = model.logit_scale.exp() * images @ plain.encode_cut(model, captions).T
        if self.setup.client.loss == "contrastive":
            targets = torch.arange(len(labels))
            loss = (F.cross_entropy(scores, targets) + F.cross_entropy(scores.T, targets)) / 2
        else:
            loss = F.cross_entropy(scores, labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def build(config: Config, me: Launch) -> tuple[Site, PlainLoop, State]:
    """Build both sides as a run does. Raises UserError like a run."""
    built, site = built_alone(config, me)
    if built.features.damaged:
        raise UserError("bench against: some images cannot be decoded; take data without such")
    tokens = built.clip.tokenize(list(built.dataset.captions))
    del built.clip.model.visual  # as in a run
    no_tests = EvaluateConfig(every=config.rounds + 1)
    built = replace(built, setup=replace(built.setup, rounds=config.rounds + 1, evaluate=no_tests))
    plain_loop = PlainLoop.of(built.setup, built.clip, tokens, built.features.values.float())
    return site, plain_loop, experiment.first_state(built, site)


def measure(config: Config, me: Launch, tell: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Play `config.rounds` rounds on each side in turn; the first warms up. No side tests the adapter."""
    config = config.model_copy(update={"comm": config.comm.model_copy(update={"device": "cpu"})})
    check(config, me)
    site, loop, state = build(config, me)
    setup, adapter = loop.setup, state.adapter.clone()
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    difference = 0.0
    for number in range(1, config.rounds + 1):
        tell(f"round {number} of {config.rounds}")
        start = time.perf_counter()
        play(setup, site, state, number)
        seconds["ours"].append(time.perf_counter() - start)
        start = time.perf_counter()
        plain_adapter = loop.play(adapter, number)
        seconds["plain"].append(time.perf_counter() - start)
        if number == 1:
            difference = float((state.adapter - plain_adapter).norm() / (plain_adapter - adapter).norm())
        adapter = state.adapter.clone()  # both sides continue from one adapter
    return {**setting(config, setup, loop), **compare(seconds), "update_difference": difference}


def compare(seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    """Medians of the rounds after the first, and how many times as fast our rounds are."""
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    return {"round_seconds": medians, "ratio": medians["plain"] / medians["ours"], "num_rounds": len(seconds["ours"]) - 1}


def setting(config: Config, setup: Setup, loop: PlainLoop) -> dict[str, Any]:
    """The settings and the machine of the measurement."""
    clients, _ = participants(setup, 1)
    return {
        "model": config.model.name,
        "method": config.method.name,
        "num_clients": len(clients),
        "caption_length": loop.tokens.shape[1],
        "num_params": setup.method.num_params,
        "first_step": firststep.describe(setup.method, setup.by_jacobian),
        "group_size": setup.grouping.most,
        "num_threads": torch.get_num_threads(),
        "device": setup.labels.device.type,
        "processor": processor(),
        "versions": versions(),
    }
