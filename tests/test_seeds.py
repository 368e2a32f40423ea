import subprocess
import sys

import pytest

from flora_hpc.seeds import generator


def numbers(*arguments: object) -> list[int]:
    return generator(*arguments).integers(0, 2**63, 4).tolist()


def test_the_same_arguments_give_the_same_numbers() -> None:
    assert numbers(0, "batches", 3, 11) == numbers(0, "batches", 3, 11)


def test_numbers_drawn_for_others_change_nothing() -> None:
    before = numbers(0, "batches", 3, 11)
    numbers(0, "batches", 3, 10)
    assert numbers(0, "batches", 3, 11) == before


@pytest.mark.parametrize(
    "other",
    [(1, "batches", 3, 11), (0, "cohort", 3, 11), (0, "batches", 4, 11), (0, "batches", 3, 12), (0, "batches", 11, 3)],
    ids=["seed", "purpose", "round", "client", "round and client swapped"],
)
def test_each_argument_gives_other_numbers(other: tuple[object, ...]) -> None:
    assert numbers(*other) != numbers(0, "batches", 3, 11)


@pytest.mark.parametrize("shorter", [(0, "population"), (0, "population", 7)], ids=["no index", "one index"])
def test_a_further_index_of_zero_gives_other_numbers(shorter: tuple[object, ...]) -> None:
    assert numbers(*shorter, 0) != numbers(*shorter)


def test_a_million_clients_get_different_numbers() -> None:
    """Neighbours and far ends of a large population, as a sample."""
    clients = [*range(100), *range(999_900, 1_000_000)]
    assert len({numbers(0, "population", client)[0] for client in clients}) == 200


def test_another_process_gives_the_same_numbers() -> None:
    """Python's own hash of a text differs between processes; the purpose must not go through it."""
    code = "from flora_hpc.seeds import generator; print(generator(5, 'batches', 3, 11).integers(0, 2**63, 4).tolist())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(numbers(5, "batches", 3, 11))
