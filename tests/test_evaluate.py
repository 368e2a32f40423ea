import numpy as np
import pytest
import torch

from flora_hpc import evaluate
from flora_hpc.accuracy import sum_of
from flora_hpc.data.holdings import Partition
from flora_hpc.data.inputs import Features
from flora_hpc.errors import UserError
from flora_hpc.records.schema import ROUNDS
from tests.test_trainer import linear_method


def test_correct_answers_by_hand() -> None:
    """Weights that score class 0 by the first feature and class 1 by the second."""
    adapter = torch.tensor([1.0, 0, 0, 0, 1.0, 0])
    features = Features(torch.tensor([[2.0, 1, 0], [1, 2, 0], [3, 0, 9], [0, 3, 9]]))

    def correct(labels: list[int], test: list[int]) -> list[int]:
        return evaluate.count_correct(linear_method(), adapter, features, torch.tensor(labels), torch.tensor(test)).test.tolist()

    assert correct([0, 1, 1, 1], [0, 1, 2, 3]) == [1, 2]
    assert correct([0, 1, 1, 1], [3, 0]) == [1, 1]
    assert correct([1, 0, 1, 0], [0, 1, 2, 3]) == [0]


def test_ranks_share_the_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    adapter, features = torch.randn(6, generator=generator), Features(torch.randn(11, 3, generator=generator), block=2)
    labels = torch.randint(0, 2, (11,), generator=generator)
    everything = torch.arange(11)
    whole = evaluate.count_correct(linear_method(), adapter, features, labels, everything).test
    right = labels[(features.values @ adapter.view(2, 3).T).argmax(1) == labels]
    assert whole.tolist() == torch.bincount(right).tolist()
    for size in (2, 3, 8):
        shares = [
            evaluate.count_correct(linear_method(), adapter, features, labels, everything, lambda n, r=rank: range(r, n, size)).test  # noqa: B023
            for rank in range(size)
        ]
        assert sum(np.pad(share, (0, 2 - len(share))) for share in shares).tolist() == np.pad(whole, (0, 2 - len(whole))).tolist()


@pytest.mark.parametrize("num_test", [1, 2, 5, 9, 10])
def test_validation_images_are_counted_beside_the_test_images(num_test: int) -> None:
    """On any number of ranks; no block has images of both kinds, so the test images are counted as they are alone."""
    generator = torch.Generator().manual_seed(1)
    adapter, features = torch.randn(6, generator=generator), Features(torch.randn(11, 3, generator=generator), block=2)
    labels, test, validation = torch.randint(0, 2, (11,), generator=generator), torch.arange(num_test), torch.arange(num_test, 11)
    alone = [evaluate.count_correct(linear_method(), adapter, features, labels, rows).test for rows in (test, validation)]
    for size in (1, 2, 3):
        shares = [lambda n, r=rank, s=size: range(r, n, s) for rank in range(size)]
        arguments = linear_method(), adapter, features, labels, test
        answers = [evaluate.count_correct(*arguments, share, validation) for share in shares]
        assert sum_of([of_rank.test for of_rank in answers]).tolist() == alone[0].tolist()
        assert sum(of_rank.validation for of_rank in answers) == alone[1].sum()


# --- each client on its own mix of classes

SHARDS = Partition(np.arange(8), np.array([0, 4, 6, 8]))  # of rows 0..7
LABELS = np.array([0, 0, 0, 1, 1, 1, 2, 2, 0, 0, 1, 1, 1, 1])  # rows 8.. are test images; none is of class 2
TEST = np.arange(8, 14)


def test_a_client_is_tested_on_its_own_mix_of_classes() -> None:
    """Right: one of two images of class 0, three of four of class 1. Client 0 has them 3 to 1, client 1 holds class 1 alone."""
    mixes = evaluate.mixes(SHARDS, LABELS, TEST, 3)
    row = np.zeros(1, ROUNDS)
    mixes.note(row, np.array([1, 3]))
    accuracies = [0.75 * 0.5 + 0.25 * 0.75, 0.75]
    assert row["client_accuracy_mean"][0] == pytest.approx(np.mean(accuracies))
    assert row["client_accuracy_std"][0] == pytest.approx(np.std(accuracies))
    assert row["client_accuracy_min"][0] == pytest.approx(accuracies[0])
    assert row["worst_client"][0] == 0


def test_a_client_without_any_tested_class_is_left_out() -> None:
    assert evaluate.mixes(SHARDS, LABELS, TEST, 3).clients.tolist() == [0, 1]


def test_of_many_clients_some_are_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "MANY", 3)
    many = Partition(np.arange(8), np.arange(9))
    assert evaluate.mixes(many, np.tile(LABELS[:8], 2), np.arange(8, 16), 3).clients.tolist() == [0, 3, 7]


def test_clients_of_which_nothing_can_be_tested() -> None:
    with pytest.raises(UserError, match=r"evaluate\.per_client: no client holds a class of which there are test images"):
        evaluate.mixes(SHARDS, np.where(np.arange(14) < 8, 2, LABELS), TEST, 3)
