import pytest
import torch
import torch.nn.functional as F

from flora_hpc.losses import LOSSES, classification, contrastive


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(3, 6, 4, generator=generator, dtype=torch.float64) * 3
    return scores, torch.randint(0, 4, (3, 6), generator=generator)


def full_matrix(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """CLIP's loss on the whole batch x batch matrix of one client, as it is usually written."""
    matrix, targets = scores[:, labels], torch.arange(len(labels))
    return (F.cross_entropy(matrix, targets) + F.cross_entropy(matrix.T, targets)) / 2


@pytest.mark.parametrize("present", [[6, 6, 6], [6, 3, 1]])
def test_contrastive_is_the_loss_of_the_full_matrix_and_so_is_its_gradient(present: list[int]) -> None:
    scores, labels = batch()
    scores.requires_grad_()
    mask = torch.arange(6) < torch.tensor(present)[:, None]
    value = contrastive(scores, labels, mask)
    expected = torch.stack([full_matrix(scores[k, :n], labels[k, :n]) for k, n in enumerate(present)])
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(value.sum(), scores)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), scores)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-12)


def test_contrastive_by_hand() -> None:
    """Two images of the same class: each caption is the other's negative, so both losses are log 2."""
    value = contrastive(torch.full((1, 2, 3), 5.0), torch.zeros(1, 2, dtype=torch.int64), torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(value, torch.tensor([2.0]).log())


def test_classification_is_cross_entropy_over_all_classes() -> None:
    scores, labels = batch()
    mask = torch.arange(6) < torch.tensor([6, 3, 1])[:, None]
    expected = torch.stack([F.cross_entropy(scores[k, :n], labels[k, :n]) for k, n in enumerate([6, 3, 1])])
    torch.testing.assert_close(classification(scores, labels, mask), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_clients_do_not_touch_each_other(loss: str) -> None:
    scores, labels = batch()
    mask = torch.ones(3, 6, dtype=torch.bool)
    before = LOSSES[loss](scores, labels, mask)
    scores[1] = torch.nan
    after = LOSSES[loss](scores, labels, mask)
    assert after[[0, 2]].equal(before[[0, 2]])
    assert after[1].isnan()
