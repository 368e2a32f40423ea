import pytest

from flora_hpc.records.sentences import dataset, describe_start, flat
from tests.contracts.known_helpers import run_info


@pytest.mark.parametrize("algorithm", ["scaffold, server of fedavgm", "fedavg", ""])
def test_the_algorithm_is_told_behind_the_method_unless_it_is_plain_fedavg(algorithm: str) -> None:
    lines = describe_start(run_info(algorithm=algorithm))
    if "scaffold" in algorithm:
        assert list(lines)[list(lines).index("method") + 1] == "algorithm"
        assert lines["algorithm"] == algorithm
    else:
        assert "algorithm" not in lines


def test_flat() -> None:
    assert flat({"a": {"b": {"c": 1}}, "d": [1, "x"], "e": None}) == {"a.b.c": 1, "d": "1, x", "e": None}


def test_a_dataset_is_named_by_files_of_any_version() -> None:
    config = "data: {name: digits}"
    assert dataset({"config": config}) == "digits"
    assert dataset({"config": config, "dataset": "folders (2 classes)"}) == "folders (2 classes)"
