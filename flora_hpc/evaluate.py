"""Accuracy of an adapter on test and validation images: for all clients together, and for each client's own mix of classes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from flora_hpc.data.holdings import Holdings
from flora_hpc.data.images import Ints
from flora_hpc.data.inputs import Inputs
from flora_hpc.errors import UserError
from flora_hpc.methods._method import Method
from flora_hpc.records.known import RightAnswers
from flora_hpc.records.schema import Rows

MOST_SCORES = 2**27  # of images against captions, computed at once: half a gibibyte
MANY = 10_000  # clients that are tested on their own; of more clients, this many, evenly spaced


def count_correct(
    method: Method,
    adapter: torch.Tensor,
    inputs: Inputs,
    labels: torch.Tensor,
    test: torch.Tensor,
    local_blocks: Callable[[int], Iterable[int]] = range,
    validation: torch.Tensor | None = None,
    triggered: torch.Tensor | None = None,
) -> RightAnswers:
    """Count this rank's images with the highest score for their class: test images by class, others together.

    `local_blocks` selects this rank's blocks of images from their number; no block has images of two kinds, so test images give
    the same bits without validation images. `adapter` (num_params,) float32, `labels` (num_images,) int64, `test`
    (num_test_images,) and `validation` int64 rows of the images. Where every image has its own caption, the captions of the test
    images compete with each other, and there is one count for all, (1,). `triggered` are rows of test images with the trigger of a
    backdoor, whose label is its target.
    """
    competing = torch.from_numpy(np.unique(labels[test].cpu().numpy())).to(labels.device) if method.paired else None
    block = inputs.block if competing is None else max(1, min(inputs.block, MOST_SCORES // len(competing)))
    parts = (test, test[:0] if validation is None else validation, test[:0] if triggered is None else triggered)
    blocks = [(kind, rows[start : start + block]) for kind, rows in enumerate(parts) for start in range(0, len(rows), block)]
    correct = [torch.empty(0, dtype=torch.int64)]  # labels of the test images that were right
    num_right = [0, 0, 0]  # of each kind
    with torch.inference_mode():
        tensors = method.unpack(adapter[None])
        classes = None
        for number in local_blocks(len(blocks)):
            if classes is None and competing is not None:
                classes = method.caption_features(tensors, None, competing[None])
            elif classes is None:
                classes = method.classes(tensors, None)
            kind, rows = blocks[number]
            scores = method.logits(tensors, classes, inputs(rows[None]), None)[0]
            best = scores.argmax(1) if competing is None else competing[scores.argmax(1)]
            right = labels[rows][best == labels[rows]].cpu()
            num_right[kind] += len(right)
            if kind == 0:
                correct.append(right)
    counts = np.bincount(torch.cat(correct).numpy(), minlength=1)
    _, num_validation, num_triggered = num_right
    return RightAnswers(counts if competing is None else counts.sum(keepdims=True), num_validation, num_triggered)


@dataclass(frozen=True)
class Mixes:
    """Mixes of classes of the clients that are tested on their own, on test images weighted by the client's label shares.

    This accuracy is the limit of a client's own test split with these label shares: exact, without the noise of a small sample.
    """

    clients: Ints  # (n,)
    shares: npt.NDArray[np.float32]  # (n, num_classes), of the classes that have test images; rows sum to 1
    num_test: Ints  # (num_classes,) test images

    def note(self, row: Rows, correct: Ints) -> None:
        """Put mean, spread and minimum into a row of /rounds (1,), from counts of right answers (at most num_classes,)."""
        counts = np.zeros(len(self.num_test))
        counts[: len(correct)] = correct
        accuracies = self.shares @ (counts / np.maximum(1, self.num_test))
        row["client_accuracy_mean"], row["client_accuracy_std"] = accuracies.mean(), accuracies.std()
        row["client_accuracy_min"], row["worst_client"] = accuracies.min(), self.clients[accuracies.argmin()]


def mixes(holdings: Holdings, labels: Ints, test: Ints, num_classes: int, key: str = "evaluate.per_client") -> Mixes:
    """The mixes of classes of all clients, or of MANY of them. Clients that hold only classes without test images are dropped.

    Raises UserError, which names the option `key`, when no client is left.
    """
    clients = np.unique(np.linspace(0, holdings.num_clients - 1, min(MANY, holdings.num_clients)).astype(np.int64))
    num_test = np.bincount(labels[test], minlength=num_classes)
    shares = np.stack([np.bincount(labels[holdings.examples(client)], minlength=num_classes) for client in clients.tolist()])
    shares = np.where(num_test > 0, shares, 0).astype(np.float32)
    tested = shares.sum(1) > 0
    if not tested.any():
        raise UserError(f"{key}: no client holds a class of which there are test images; leave it out")
    return Mixes(clients[tested], shares[tested] / shares[tested].sum(1, keepdims=True), num_test)
