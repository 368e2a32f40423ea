"""Data from which nothing can be learned or measured are refused; data that can be meant so, but seldom are, get a warning."""

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np

from flora_hpc.data.images import Dataset, Ints
from flora_hpc.errors import UserError

NAMED = 5  # classes that a sentence names


def checked(dataset: Dataset) -> Dataset:
    """The dataset with its warnings. Raises UserError where nothing can be learned from its training images."""
    labels, names, key = dataset.images.labels, dataset.class_names, "caption" if dataset.paired else "class"
    trained, tested = (np.unique(labels[rows]) for rows in (dataset.train, dataset.test))
    if not dataset.paired and len(names) == 1:
        raise UserError(f"data: {dataset.name} has the single class '{names[0]}', so every answer is right; it needs two or more")
    if len(trained) == 1:
        raise UserError(
            f"data: all {len(dataset.train):,} training images of {dataset.name} have the {key} '{names[trained[0]]}', "
            f"so nothing can be learned from them; check the labels, or add images of another {key}"
        )
    if not len(dataset.test):
        raise UserError(f"data: {dataset.name} has no test image; {_no_test_cure(dataset)}")
    refuse_alike(dataset)
    sentences = []
    if len(dataset.test) == 1:
        sentences.append("there is a single test image, so test accuracy is 0 or 1; raise data.test_fraction or add test images")
    elif len(tested) == 1:
        also = ", so test accuracy is 1 whatever is learned" if dataset.paired else ""
        sentences.append(f"all {len(dataset.test):,} test images have the {key} '{names[tested[0]]}'{also}; check the labels")
    if not dataset.paired:
        sentences += _gaps(dataset, trained, tested)
    return warned(dataset, sentences)


def _no_test_cure(dataset: Dataset) -> str:
    if dataset.paired or np.bincount(dataset.images.labels[dataset.train]).max(initial=0) > 1:
        return "add test images"
    return "of a class with one image none is left for testing: add images to the classes, or give test images of their own"


def warned(dataset: Dataset, sentences: Sequence[str]) -> Dataset:
    """The dataset with more warnings, each of them once."""
    return replace(dataset, warnings=tuple(dict.fromkeys((*dataset.warnings, *sentences))))


def _gaps(dataset: Dataset, trained: Ints, tested: Ints) -> list[str]:
    """Which classes lack training images, test images or both."""
    every = np.arange(len(dataset.class_names))
    without = {
        "training image": np.setdiff1d(tested, trained),
        "test image": np.setdiff1d(trained, tested),
        "image": np.setdiff1d(every, np.union1d(trained, tested)),
    }
    effects = {
        "training image": "nobody trains on them",
        "test image": "accuracy says nothing about them",
        "image": "they are possible answers even so",
    }
    return [
        f"{len(classes):,} of {len(every):,} classes have no {kind}, so {effects[kind]}: {few(dataset, classes)}"
        for kind, classes in without.items()
        if len(classes)
    ]


def few(dataset: Dataset, classes: Ints) -> str:
    """Some classes by name."""
    more = f" and {len(classes) - NAMED:,} more" if len(classes) > NAMED else ""
    return ", ".join(dataset.class_names[i] for i in classes[:NAMED].tolist()) + more


def alike(keys: Sequence[Hashable]) -> list[tuple[int, int]]:
    """(first, other) for every class whose key an earlier class has, too."""
    first: dict[Hashable, int] = {}
    return [(first[key], i) for i, key in enumerate(keys) if first.setdefault(key, i) != i]


def refuse_alike(dataset: Dataset) -> None:
    """Raise UserError where two classes have one caption, letter by letter."""
    if (twins := alike(dataset.captions)) and not dataset.paired:
        caption = dataset.captions[twins[0][0]]
        raise UserError(not_told_apart(dataset, twins, f"the same caption, '{_short(caption)}'"))


def not_told_apart(dataset: Dataset, twins: Sequence[tuple[int, int]], shared: str) -> str:
    """The sentence that names two classes and what they share."""
    one, other = (dataset.class_names[i] for i in twins[0])
    more = f"; so it is with {len(twins) - 1:,} more pair{'s' * (len(twins) > 2)} of classes" if len(twins) > 1 else ""
    return (
        f"data: classes {_short(one)!r} and {_short(other)!r} of {dataset.name} cannot be told apart: they have {shared}{more}; "
        "give each class a name of its own, or merge them (names come from prompt_names in an HDF5 file, data.names for a folder)"
    )


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:30]}...{text[-40:]}"
