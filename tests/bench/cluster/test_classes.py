import pytest

from flora_hpc.bench.cluster import classes
from flora_hpc.errors import UserError
from tests.conftest import ROOT

DIGESTS = {
    "T": "0849541690102a2f",
    "S": "40bca563776174cb",
    "M": "0c2ad118220e7709",
    "L": "07fd6acb15ae25c6",
    "X": "b06e2fdb79934924",
    "F": "8dc08bcf1ca1ca5a",
}


def test_published_classes_never_change() -> None:
    """A class whose work must change gets a new VERSION instead."""
    assert classes.VERSION == 1
    assert {name: each.digest for name, each in classes.CLASSES.items()} == DIGESTS


def test_the_table_in_the_docs_is_that_of_the_program() -> None:
    text = (ROOT / "docs" / "benchmark.md").read_text()
    for each in classes.CLASSES.values():
        numbers = f"{each.clients:,} | {each.weak_clients:,} | {each.steps} x 32 | {each.accuracy[0]:g} to {each.accuracy[1]:g}"
        assert f"| {each.name} | {each.model}, {each.method} | {numbers} |" in text


@pytest.mark.parametrize("name", classes.CLASSES)
def test_every_class_is_a_configuration(name: str) -> None:
    work = classes.Work(classes.find(name.lower()), fraction=0.001)
    config = work.config(work.clients(1), 3)
    assert (config.rounds, config.cohort.size, config.client.batch_size) == (3, work.clients(1), 32)
    assert config.partition.examples_per_client == 32 * work.of.steps  # type: ignore[attr-defined]
    assert config.checkpoint.every == 0


def test_clients_of_strong_and_weak_scaling_and_of_a_share() -> None:
    t = classes.find("T")
    assert [classes.Work(t).clients(units) for units in (1, 4)] == [1000, 1000]
    assert [classes.Work(t, weak=True).clients(units) for units in (1, 4)] == [500, 2000]
    assert classes.Work(t, fraction=0.25).clients(1) == 250
    assert classes.Work(t, fraction=1e-6).clients(1) == 1
    assert [classes.Work(t, fraction=f).probe_clients for f in (1, 0.1, 0.01)] == [15, 1, 1]
    assert classes.Work(t, repeats=7).rounds == 8
    assert [classes.Work(t).config(clients, 1).records.clients for clients in (1000, 1001)] == ["all", "sample 1000"]


def test_weak_scaling_fits_into_an_exact_sum_on_a_thousand_nodes() -> None:
    assert max(each.weak_clients for each in classes.CLASSES.values()) * 1024 <= 2**21


def test_an_unknown_class() -> None:
    with pytest.raises(UserError, match=r"--class Q: there is no such class; take one of T, S, M, L, X, F"):
        classes.find("Q")
