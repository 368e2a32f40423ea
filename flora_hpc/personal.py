"""Personal evaluation: each participant's own model, and the server's adapter, on the client's own mix of classes.

    a client's own model is the server's new adapter, in which
        its private part takes its place          where the algorithm keeps one
        all trained numbers are its own model's   with an algorithm such as Ditto
    or, after the last round, the result of evaluate.fine_tune_epochs more epochs from the server's new adapter and the private part

A client's accuracy is a weighted mean over classes: the share of right test images of a class, weighted by the client's examples
of that class. That is the exact limit of a test split of its own. Classes without test images do not count. Each rank tests the
clients that it has trained. The numbers of a client depend on that client alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from flora_hpc import pruning, trainer
from flora_hpc.algorithms._algorithm import Local
from flora_hpc.data.images import Ints
from flora_hpc.methods._method import Method
from flora_hpc.records.schema import Rows
from flora_hpc.roles import freeze
from flora_hpc.setup import Setup

BLOCK = 1024  # test images that are scored at once; fixed, because the shape of a product may decide its last bits
MOST_NUMBERS = 2**24  # of inputs, scores and features of classes, of all clients that are tested at once

Shares = npt.NDArray[np.float64]
Memory = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Personal:
    """The tests of one round."""

    setup: Setup
    round: int
    adapter: torch.Tensor  # (num_params,), the server's new one
    correct: Ints  # (at most num_classes,), test images by class that the adapter gets right, of all ranks

    @cached_property
    def num_test(self) -> Ints:
        """Test images of each class (num_classes,)."""
        return np.bincount(self.setup.labels[self.setup.test].cpu().numpy(), minlength=self.setup.num_classes)

    def test(self, rows: Rows, memory: Memory) -> None:
        """Fill in the accuracies of the clients of a trained group, whose `rows` of /clients are in the group's order.

        `memory` is what these clients remember after the round, (num_clients, width) by name.
        """
        setup, clients = self.setup, rows["client"]
        num_test = self.num_test
        counts = np.zeros(setup.num_classes, np.int64)
        counts[: len(self.correct)] = self.correct
        shares = class_shares(setup, clients, num_test > 0)
        rows["global_accuracy"] = accuracies(shares, np.tile(counts, (len(clients), 1)), num_test)
        models = self.models(clients, memory)
        if models is None:
            rows["personal_accuracy"] = rows["global_accuracy"]
            return
        tested = np.flatnonzero(shares.any(1))
        size, correct = group_size(setup), np.zeros((len(clients), setup.num_classes), np.int64)
        for start in range(0, len(tested), size):
            some = tested[start : start + size]
            correct[some] = count_correct(setup, models[torch.from_numpy(some)])
        rows["personal_accuracy"] = accuracies(shares, correct, num_test)

    def models(self, clients: Ints, memory: Memory) -> torch.Tensor | None:
        """The clients' own models (num_clients, num_params); None where each of them is the server's adapter."""
        setup, roles = self.setup, self.setup.federation.roles_in(self.round)
        method = pruning.holding(setup.method, clients, memory)
        fine_tunes = setup.evaluate.fine_tune_epochs > 0 and self.round == setup.rounds
        if not (fine_tunes or setup.federation.keeps_models or method.portions):
            return None
        models = self.adapter.repeat(len(clients), 1)
        own = {name: memory[name].to(models.device) for name in ("private", "personal") if name in memory}
        if "private" in own:
            models = roles.own.put(models, own["private"])
        if fine_tunes:
            models = roles.trained.put(models, self.fine_tuned(method, clients, models))
        elif "personal" in own:
            models = roles.trained.put(models, own["personal"])
        return models if method.portions is None else models * method.portions.mask(clients).to(models.device)

    def fine_tuned(self, method: Method, clients: Ints, models: torch.Tensor) -> torch.Tensor:
        """The trained numbers (num_clients, num_trained) of `models` (num_clients, num_params) after plain local training.

        The round's number is one more than the last, so that the order of examples is a new one.
        """
        setup, roles = self.setup, self.setup.federation.roles_in(self.round)
        config = setup.client.model_copy(update={"epochs": setup.evaluate.fine_tune_epochs})
        batches = trainer.make_batches(clients, setup.holdings, config, setup.seed, self.round + 1, setup.padding_multiple)
        frozen = freeze(method, roles, self.adapter)
        params = roles.trained.take(models).contiguous()
        mask = roles.trained.take(method.portions.mask(clients)).to(params.device) if method.portions else None
        task = trainer.Task(frozen, setup.inputs, setup.labels, config, Local())
        return params + trainer.train(task, trainer.Start(params, mask), batches).updates


def class_shares(setup: Setup, clients: Ints, is_tested: npt.NDArray[np.bool_]) -> Shares:
    """The share of each class in the examples of each client, over classes that are tested: (num_clients, num_classes).

    A client that holds none of these classes has zeros only.
    """
    examples, sizes = setup.holdings.examples_of(clients)
    labels = setup.labels[torch.from_numpy(examples).to(setup.labels.device)].cpu().numpy()
    cells = np.repeat(np.arange(len(clients)), sizes) * setup.num_classes + labels
    counts = np.bincount(cells, minlength=len(clients) * setup.num_classes).reshape(len(clients), setup.num_classes) * is_tested
    shares: Shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    return shares


def accuracies(shares: Shares, correct: Ints, num_test: Ints) -> npt.NDArray[np.float64]:
    """The accuracy of each client on its mix (num_clients,), from right test images (num_clients, num_classes); NaN for no mix."""
    result: npt.NDArray[np.float64] = (shares * correct / np.maximum(1, num_test)).sum(1)
    return np.where(shares.any(1), result, np.nan)


def group_size(setup: Setup) -> int:
    """How many clients are tested at once: as many as fit in memory, and no more than are trained at once."""
    block = min(BLOCK, setup.inputs.block, len(setup.test))
    width = setup.inputs(setup.test[:1]).numel()
    per_client = block * (width + setup.num_classes) + setup.num_classes * width
    return max(1, min(setup.grouping.most, MOST_NUMBERS // max(1, per_client)))


def count_correct(setup: Setup, models: torch.Tensor) -> Ints:
    """Count the test images with the highest score for their class, by client and class: (num_clients, num_classes).

    `models` (num_clients, num_params) are all numbers of each client's model. Scores that are not finite are wrong.
    """
    method, labels, test, num_clients = setup.method, setup.labels, setup.test, len(models)
    correct = torch.zeros(setup.num_classes, num_clients, dtype=torch.int64, device=models.device)
    block = min(BLOCK, setup.inputs.block)
    with torch.inference_mode():
        tensors = method.unpack(models)
        classes = method.classes(tensors, None)
        for start in range(0, len(test), block):
            rows = test[start : start + block]
            inputs = setup.inputs(rows[None])
            # copies, as in training: a stride of 0 could lead to other kernels, and so to other bits
            inputs = inputs.repeat(num_clients, *[1] * (inputs.dim() - 1))
            scores = method.logits(tensors, classes, inputs, None).expand(num_clients, -1, -1)
            best, answers = scores.max(2)
            right = (answers == labels[rows]) & torch.isfinite(best)
            correct.index_add_(0, labels[rows], right.t().long())
    counts: Ints = correct.t().cpu().numpy()
    return counts
