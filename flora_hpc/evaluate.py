"""The accuracy of an adapter on the test images."""

import torch

from flora_hpc.data.inputs import Inputs
from flora_hpc.methods._method import Method


def count_correct(method: Method, adapter: torch.Tensor, inputs: Inputs, labels: torch.Tensor, rank: int = 0, size: int = 1) -> int:
    """How many of this rank's test images get the highest score for their own class. Blocks of images go to ranks in turn.

    `adapter` (num_params,) float32, `labels` (num_images,) int64.
    """
    mine = range(0, len(labels), inputs.block)[rank::size]
    correct = 0
    with torch.inference_mode():
        tensors = method.unpack(adapter[None])
        classes = method.classes(tensors, None) if mine else torch.empty(0)
        for start in mine:
            rows = torch.arange(start, min(start + inputs.block, len(labels)), device=labels.device)
            scores = method.logits(tensors, classes, inputs(rows[None]), None)[0]
            correct += int((scores.argmax(1) == labels[rows]).sum())
    return correct
