"""Rounds played with the pure functions of an algorithm alone: one client after another, without ranks, groups or the trainer.

All numbers have the width of the adapter; masks say which of them are trained and which are shared. Clients take steps of SGD.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from flora_hpc import plugins
from flora_hpc.algorithms._algorithm import (
    Algorithm,
    Combine,
    Ended,
    Gradient,
    LayerMeans,
    Local,
    LocalStep,
    Now,
    Server,
    Setting,
    Sharing,
)
from flora_hpc.config import ClientConfig
from flora_hpc.methods._method import Layer

Vector = dict[str, torch.Tensor]  # name -> (num_params,)
Gradients = Sequence[Callable[[torch.Tensor], torch.Tensor]]  # of each step of a client, at params (num_params,)
ONE = {"weight": 1}


def build(
    name: str, names: Sequence[str] = ("weight",), num_registered: int = 2, *, client: ClientConfig | None = None, **options: Any
) -> Algorithm:
    """The parts that an algorithm defines."""
    module = plugins.member("algorithms", name)
    setting = Setting(client or ClientConfig(optimizer="sgd", loss="classification"), tuple(names), False, num_registered)
    result: Algorithm = module.build(module.Options(name=name, **options), setting)
    return result


def whole(parts: Algorithm) -> Algorithm:
    """The parts, and FedAvg's for the rest."""
    return build("fedavg")._replace(**{name: part for name, part in parts._asdict().items() if part is not None})


class Client(NamedTuple):
    """A client of the loop."""

    num_examples: int
    gradients: Callable[[int], Gradients]  # of a round


@dataclass
class Federated:
    """An algorithm, and what it remembers."""

    parts: Algorithm
    adapter: torch.Tensor  # (num_params,)
    lr: float
    num_registered: int
    sizes: Mapping[str, int] = field(default_factory=lambda: ONE)  # of the trained tensors
    memories: dict[int, Vector] = field(default_factory=dict)  # of clients that were trained
    server: Any = None
    layers: Sequence[Layer] = ()  # of low-rank adapters

    def __post_init__(self) -> None:
        self.parts, self.initial = whole(self.parts), self.adapter
        self.server = part(self.parts.server, Server).init(self.adapter)

    def mask(self, number: int, *roles: str) -> torch.Tensor:
        """The numbers (num_params,) bool with one of these roles in a round."""
        role = part(self.parts.sharing, Sharing).role
        chosen = [torch.full((size,), role(name, number) in roles) for name, size in self.sizes.items()]
        return torch.cat(chosen)

    def memory(self, client: int) -> Vector:
        """What a client remembers; at first zeros, and the initial adapter as its own model."""
        local, transform = part(self.parts.local, Local), self.parts.transform
        zeros = [f"local.{name}" for name in local.memory] + [
            f"transform.{name}" for name in (transform.memory if transform else ())
        ]
        own = {"private": self.initial, "personal": self.initial}
        return self.memories.get(client, dict.fromkeys(zeros, torch.zeros_like(self.initial)) | own)

    def play(self, number: int, clients: Mapping[int, Client]) -> None:
        """Play a round with these clients: the adapter, the server's state and the memories change."""
        combine, server = part(self.parts.combine, Combine), part(self.parts.server, Server)
        message = server.message(self.server)
        results = {name: self.train(number, name, client, message) for name, client in clients.items()}
        weights = combine.weights(torch.tensor([client.num_examples for client in clients.values()]))
        sent = part(self.parts.local, Local).sends
        means = {}
        for name in next(iter(results.values()))[0]:
            rows = torch.stack([rows[name] for rows, _ in results.values()])
            means[name] = mean(rows, torch.ones_like(weights) if name in sent else weights)
        now = Now(number, len(clients), self.num_registered, int(weights.sum()), means)
        adapter, self.server = server.apply(self.adapter, combine.finish(means, now), self.server, now)
        before, self.adapter = self.adapter, torch.where(self.mask(number, "shared"), adapter, self.adapter)
        if combine.factors is not None:
            models = torch.stack([before + rows["update"] for rows, _ in results.values()])
            for layer in self.layers:
                self.replace(layer, combine.factors, models, weights)
        self.memories |= {name: memory for name, (_, memory) in results.items()}

    def replace(
        self, layer: Layer, factors: Callable[[LayerMeans], Sequence[torch.Tensor]], models: torch.Tensor, weights: Any
    ) -> None:
        """Put new factors of a layer into the adapter, from the clients' models (num_clients, num_params)."""
        (out, width), rank = layer.shape, layer.rank
        a = models[:, self.place(layer.a)].view(-1, rank, width)
        b = models[:, self.place(layer.b)].view(-1, out, rank)
        means = (mean(rows.flatten(1), weights).view(rows.shape[1:]) for rows in (b @ a, a, b))
        for name, values in zip((layer.a, layer.b), factors(LayerMeans(*means)), strict=True):
            self.adapter[self.place(name)] = values.flatten()

    def place(self, name: str) -> slice:
        """The place of a tensor in the adapter."""
        names = list(self.sizes)
        start = sum(self.sizes[other] for other in names[: names.index(name)])
        return slice(start, start + self.sizes[name])

    def train(self, number: int, name: int, client: Client, message: Vector) -> tuple[Vector, Vector]:
        """What a client sends, and what it remembers."""
        local, memory = part(self.parts.local, Local), self.memory(name)
        trained, shared = self.mask(number, "shared", "private"), self.mask(number, "shared")
        start = torch.where(self.mask(number, "private"), memory["private"], self.adapter)
        gradients = client.gradients(number)
        own = {name.removeprefix("local."): rows[None] for name, rows in memory.items() if name.startswith("local.")}
        hook = with_hook(local.gradient, start, message, own)
        end, gradient_sum = descend(start, gradients, hook, trained, self.lr)
        update, rows, remembered = end - start, {}, {"private": end, "personal": memory["personal"]}
        if local.end is not None:
            ended = Ended(update[None], gradient_sum[None], torch.tensor([[float(len(gradients))]]), message, own)
            rows, changed = ({key: values[0] for key, values in part.items()} for part in local.end(ended))
            remembered |= {f"local.{key}": values for key, values in changed.items()}
        if local.personal is not None:
            pull = with_hook(local.personal, self.adapter, message, {})
            remembered["personal"] = descend(memory["personal"], gradients, pull, trained, self.lr)[0]
        update = update * shared
        prepare = part(self.parts.combine, Combine).prepare
        if prepare is not None:
            rows |= {key: values[0] for key, values in prepare(update[None], torch.tensor([[float(len(gradients))]])).items()}
        return {"update": update} | rows, remembered


def with_hook(hook: Gradient | None, start: torch.Tensor, message: Vector, memory: Vector) -> Gradient:
    """A client's change of its gradients; `memory` is (1, num_params) by name."""
    if hook is None:
        return lambda gradient, params: gradient
    return lambda gradient, params: hook(gradient[None], LocalStep(params[None], start[None], message, memory))[0]


def descend(
    start: torch.Tensor, gradients: Gradients, hook: Gradient, trained: torch.Tensor, lr: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The params after SGD, and the sum of the gradients along the path."""
    params, total = start, torch.zeros_like(start)
    for gradient in gradients:
        raw = gradient(params) * trained
        total = total + raw
        params = params - lr * hook(raw, params) * trained
    return params, total


def mean(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weighted mean of rows (num_clients, n)."""
    return (rows * weights[:, None]).sum(0) / weights.sum()


def part(value: Any, kind: type) -> Any:
    """A part that is there."""
    assert isinstance(value, kind)
    return value
