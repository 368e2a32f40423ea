import torch

from flora_hpc import evaluate
from flora_hpc.data.inputs import Features
from tests.test_trainer import linear_method


def test_correct_answers_by_hand() -> None:
    """Weights that score class 0 by the first feature and class 1 by the second."""
    adapter = torch.tensor([1.0, 0, 0, 0, 1.0, 0])
    features = Features(torch.tensor([[2.0, 1, 0], [1, 2, 0], [3, 0, 9], [0, 3, 9]]))
    assert evaluate.count_correct(linear_method(), adapter, features, torch.tensor([0, 1, 1, 1])) == 3
    assert evaluate.count_correct(linear_method(), adapter, features, torch.tensor([1, 0, 1, 0])) == 0


def test_ranks_share_the_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    adapter, features = torch.randn(6, generator=generator), Features(torch.randn(11, 3, generator=generator), block=2)
    labels = torch.randint(0, 2, (11,), generator=generator)
    whole = evaluate.count_correct(linear_method(), adapter, features, labels)
    expected = int(((features.values @ adapter.view(2, 3).T).argmax(1) == labels).sum())
    assert whole == expected
    for size in (2, 3, 8):
        shares = [evaluate.count_correct(linear_method(), adapter, features, labels, rank, size) for rank in range(size)]
        assert sum(shares) == whole
