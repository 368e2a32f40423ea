from flora_hpc.records.sentences import dataset, flat


def test_flat() -> None:
    assert flat({"a": {"b": {"c": 1}}, "d": [1, "x"], "e": None}) == {"a.b.c": 1, "d": "1, x", "e": None}


def test_a_dataset_is_named_by_files_of_any_version() -> None:
    config = "data: {name: digits}"
    assert dataset({"config": config}) == "digits"
    assert dataset({"config": config, "dataset": "folders (2 classes)"}) == "folders (2 classes)"
