"""Losses of a training step for many clients at once, from scores per class.

Both losses take scores (num_clients, batch, num_classes), labels (num_clients, batch) int64 and `present` (num_clients, batch)
bool. `present` is False where a client's batch is short. The result (num_clients,) is the mean over the examples present.
"""

import torch
import torch.nn.functional as F


def contrastive(scores: torch.Tensor, labels: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """CLIP's symmetric loss over the batch: image i must find its caption among the batch's captions, and the caption its image.

    As in the FLoRA paper's code, equal captions of a batch count as negatives of each other. The batch x batch matrix of scores has
    only as many distinct columns as there are classes. So row and column sums run over classes, weighted by how often each class
    occurs; value and gradient equal those of the full matrix.
    """
    weights = present.to(scores.dtype)
    counts = torch.zeros(scores.shape[0], scores.shape[2], dtype=scores.dtype, device=scores.device)
    counts.scatter_add_(1, labels, weights)  # how often each class occurs in the batch: whole numbers, exact in any order
    matching = scores.gather(2, labels[:, :, None]).squeeze(2)
    over_captions = (scores + counts.log()[:, None]).logsumexp(2)
    over_images = (scores + weights.log()[:, :, None]).logsumexp(1)
    image_loss = ((over_captions - matching) * weights).sum(1)
    text_loss = (over_images * counts).sum(1) - (matching * weights).sum(1)
    return (image_loss + text_loss) / (2 * weights.sum(1))


def classification(scores: torch.Tensor, labels: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Cross entropy of each image over the captions of all classes."""
    weights = present.to(scores.dtype)
    by_image = F.cross_entropy(scores.transpose(1, 2), labels, reduction="none")
    return (by_image * weights).sum(1) / weights.sum(1)


LOSSES = {"contrastive": contrastive, "classification": classification}
