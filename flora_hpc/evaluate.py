"""The accuracy of an adapter on the test images."""

import torch

from flora_hpc.methods._method import Method

BLOCK = 16384  # images scored at once; fixed, because the shape of a matrix product may decide its last bits


def count_correct(
    method: Method, adapter: torch.Tensor, features: torch.Tensor, labels: torch.Tensor, rank: int = 0, size: int = 1
) -> int:
    """How many of this rank's test images get the highest score for their own class. Blocks of images go to ranks in turn.

    `adapter` (num_params,) float32, `features` (num_images, embed_dim) float32, `labels` (num_images,) int64.
    """
    correct = 0
    with torch.inference_mode():
        for start in range(0, len(labels), BLOCK)[rank::size]:
            block = slice(start, start + BLOCK)
            scores = method.logits(method.unpack(adapter[None]), features[None, block])[0]
            correct += int((scores.argmax(1) == labels[block]).sum())
    return correct
