"""Refuse data from which nothing can be learned or measured; warn of data that are seldom meant so."""

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np

from flora_hpc.data.images import Dataset, Ints
from flora_hpc.errors import UserError

NAMED = 5  # most classes that a sentence names


def checked(dataset: Dataset) -> Dataset:
    """Check a dataset and add warnings to it. Raises UserError where nothing can be learned or measured with its images."""
    labels, names, key = dataset.images.labels, dataset.class_names, "caption" if dataset.paired else "class"
    train_classes, test_classes = (np.unique(labels[rows]) for rows in (dataset.train, dataset.test))
    if not dataset.paired and len(names) == 1:
        raise UserError(f"data: {dataset.name} has the single class '{names[0]}', so every answer is right; it needs two or more")
    if len(train_classes) == 1:
        raise UserError(
            f"data: all {len(dataset.train):,} training images of {dataset.name} have the {key} '{names[train_classes[0]]}', "
            f"so nothing can be learned from them; check the labels, or add images of another {key}"
        )
    if not len(dataset.test):
        raise UserError(f"data: {dataset.name} has no test image; {_no_test_cure(dataset)}")
    refuse_alike(dataset)
    sentences = []
    if len(dataset.test) == 1:
        sentences.append("there is a single test image, so test accuracy is 0 or 1; raise data.test_fraction or add test images")
    elif len(test_classes) == 1:
        also = ", so test accuracy is 1 whatever is learned" if dataset.paired else ""
        sentences.append(f"all {len(dataset.test):,} test images have the {key} '{names[test_classes[0]]}'{also}; check the labels")
    if not dataset.paired:
        sentences += _missing_classes(dataset, train_classes, test_classes)
    return warned(dataset, sentences)


def _no_test_cure(dataset: Dataset) -> str:
    """What a user can do about a dataset without test images."""
    if dataset.paired or np.bincount(dataset.images.labels[dataset.train]).max(initial=0) > 1:
        return "add test images"
    return "of a class with one image none is left for testing: add images to the classes, or give test images of their own"


def warned(dataset: Dataset, sentences: Sequence[str]) -> Dataset:
    """Add warnings to a dataset; each warning stands once."""
    return replace(dataset, warnings=tuple(dict.fromkeys((*dataset.warnings, *sentences))))


def _missing_classes(dataset: Dataset, train_classes: Ints, test_classes: Ints) -> list[str]:
    """Sentences about classes that lack training images, test images or both."""
    all_classes = np.arange(len(dataset.class_names))
    without = {
        "training image": np.setdiff1d(test_classes, train_classes),
        "test image": np.setdiff1d(train_classes, test_classes),
        "image": np.setdiff1d(all_classes, np.union1d(train_classes, test_classes)),
    }
    if len(dataset.validation):
        validation_classes = np.unique(dataset.images.labels[dataset.validation])
        without["validation image"] = np.setdiff1d(train_classes, validation_classes)
    effects = {
        "training image": "nobody trains on them",
        "test image": "accuracy says nothing about them",
        "image": "they are possible answers even so",
        "validation image": "validation accuracy says nothing about them",
    }
    return [
        f"{len(classes):,} of {len(all_classes):,} classes have no {kind}, so {effects[kind]}: {few(dataset, classes)}"
        for kind, classes in without.items()
        if len(classes)
    ]


def few(dataset: Dataset, classes: Ints) -> str:
    """The names of at most `NAMED` classes, and how many more there are."""
    more = f" and {len(classes) - NAMED:,} more" if len(classes) > NAMED else ""
    return ", ".join(dataset.class_names[i] for i in classes[:NAMED].tolist()) + more


def alike(keys: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Pairs (first, second) of classes with the same key: `second` is each class whose key an earlier class has."""
    first: dict[Hashable, int] = {}
    return [(first[key], i) for i, key in enumerate(keys) if first.setdefault(key, i) != i]


def refuse_alike(dataset: Dataset) -> None:
    """Raise UserError where two classes have the same caption."""
    if (duplicates := alike(dataset.captions)) and not dataset.paired:
        caption = dataset.captions[duplicates[0][0]]
        raise UserError(not_told_apart(dataset, duplicates, f"the same caption, '{_short(caption)}'"))


def not_told_apart(dataset: Dataset, duplicates: Sequence[tuple[int, int]], shared: str) -> str:
    """The message that two classes cannot be distinguished, because they share `shared`."""
    first, second = (dataset.class_names[i] for i in duplicates[0])
    num_more = len(duplicates) - 1
    more = f"; so it is with {num_more:,} more pair{'s' * (num_more > 1)} of classes" if num_more else ""
    return (
        f"data: classes {_short(first)!r} and {_short(second)!r} of {dataset.name} cannot be told apart: they have {shared}{more}; "
        "give each class a name of its own, or merge them (names come from prompt_names in an HDF5 file, data.names for a folder)"
    )


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:30]}...{text[-40:]}"
