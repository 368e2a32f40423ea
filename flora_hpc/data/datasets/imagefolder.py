"""A folder of image files with one folder per class: PATH/CLASS/..., or PATH/train/CLASS/... beside PATH/test/CLASS/..."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from flora_hpc import yamltext
from flora_hpc.data.datasets._files import read
from flora_hpc.data.datasets._leftout import ARCHIVE, LeftOut, printable
from flora_hpc.data.datasets._walk import Files, count_unused, drop_duplicates, folders_in, has_images, no_image_reason, walk
from flora_hpc.data.images import Dataset, DatasetOptions, Images, Raw, assemble, stamp
from flora_hpc.data.texts import from_json, name_fault
from flora_hpc.errors import UserError, at_home, did_you_mean, reason
from flora_hpc.filekinds import elsewhere

TRAINS = ("train", "training")
# names of folders of test images; the first that exists is used
TESTS = ("test", "testing", "val", "valid", "validation", "eval", "evaluation", "dev", "holdout")
UNLABELLED = ("unlabeled", "unlabelled", "unsup")  # names of folders of images without classes


class Options(DatasetOptions):
    """The folder, and the names of its classes."""

    path: Path = Field(
        examples=["FOLDER"],
        description="the folder; test images are those of its folder test, val or valid beside train, or are drawn",
    )
    names: Path | None = Field(
        None, description="a JSON or YAML file, folder of a class: how captions write it; by default _ and - become spaces"
    )


def build(options: Options) -> Dataset:
    """List the files; images are read on request. Raises UserError for a folder without images in folders of classes."""
    path = at_home(options.path, key="data.path")
    if os.path.isfile(path):  # noqa: PTH113 -- pathlib raises for names that are too long
        what = "an archive; unpack it" if no_image_reason(str(path)) == ARCHIVE else "a file"
        raise UserError(f"data.path: {path} is {what}; give a folder, or data.name: pairs or hdf5 for a file")
    if not os.path.isdir(path):  # noqa: PTH112
        raise UserError(f"data.path: {_why_absent(path)}")
    left_out = LeftOut(path)
    train, test = _parts(path)
    folders = [train] if test is None else [train, test]
    count_unused(path, folders, left_out)
    classes = _classes(train, left_out)
    if test is not None and (other := sorted(set(classes) ^ set(_classes(test, left_out)))):
        raise UserError(
            f"data.path: {train} and {test} have other classes: {_few(other)} in one of them only; make their folders the same"
        )
    parts = drop_duplicates([walk(folder, classes, left_out) for folder in folders], left_out)
    filled = {int(label) for part in parts for label in np.unique(part.labels)}
    if empty := [name for i, name in enumerate(classes) if i not in filled]:
        raise UserError(
            f"data.path: {path} has no images in the folders {_few(empty)}; put some in, or remove the folders{_why(left_out)}"
        )
    if bare := [part.folder for part in parts if not len(part)]:
        raise UserError(f"data.path: {bare[0]} holds no images; put some in, or remove {test}{_why(left_out)}")
    if len(classes) == 1 and all("/" in file.split("/", 1)[1] for part in parts for file in part.paths):
        raise UserError(f"data.path: {train} has a single folder, which has folders; did you mean {train / classes[0]}?")
    nested = any(file.count("/") > 1 for part in parts for file in part.paths)
    images = [_images(path, part, nested) for part in parts]
    wordings = _wordings(options, classes)
    dataset = assemble(options, path.resolve().name, classes, wordings, images[0], images[1] if test is not None else None)
    return replace(dataset, left_out=left_out.reasons())


def _why_absent(path: Path) -> str:
    """Why there is no folder at `path`, in one clause."""
    if (why := elsewhere(path)) is not None:
        return f"{path} is {why}"
    nearby = [folder.name for folder in path.parent.glob("*/")] if os.path.isdir(path.parent) else []  # noqa: PTH112
    return f"there is no folder {path}{did_you_mean(path.name, nearby)}"


def _parts(path: Path) -> tuple[Path, Path | None]:
    """The folder of training images, and the folder of test images or None. A class may be called train, beside other classes.

    A folder of test images without folders of classes has no labels and is dropped.
    """
    folders = folders_in(path)
    trains, tests = ([name for word in words for name in folders if name.lower() == word] for words in (TRAINS, TESTS))
    if folders and len(tests) == len(folders):
        raise UserError(
            f"data.path: {path} has {tests[0]}, but no train beside it; add it, or give {path / tests[0]} to split that"
        )
    if not trains or not (tests or folders == trains[:1]):
        if trains:
            _refuse_parts(path, trains[0], [name for name in folders if name != trains[0]])
        return path, None
    labelled = [path / name for name in tests if folders_in(path / name)]
    return path / trains[0], labelled[0] if labelled else None


def _refuse_parts(path: Path, train: str, others: Sequence[str]) -> None:
    """Raise UserError where `train` and the folders beside it look like parts, not classes: they hold folders, but no images."""
    are_nested = [bool(folders_in(path / name)) and not has_images(path / name) for name in (train, *others)]
    if all(are_nested) or (are_nested[0] and any(name.lower() in UNLABELLED for name in others)):
        raise UserError(
            f"data.path: {path} has {train} beside {_few(others)}, as if they were classes; did you mean the parts? Call the "
            f"folder of test images test, or give {path / train} to split that; if {train} is a class, give it another name"
        )


def _classes(path: Path, left_out: LeftOut) -> list[str]:
    """The names of the class folders below `path`. Raises UserError for unusable names, or none."""
    classes = folders_in(path)
    if not classes:
        raise UserError(f"data.path: {path} has no folders; it needs one for each class, with its images{_why(left_out)}")
    if unclear := [name for name in classes if name_fault(name)]:
        raise UserError(
            f"data.path: {path}: the folder {printable(unclear[0])} is not named in UTF-8, or over several lines; rename it"
        )
    return classes


def _why(left_out: LeftOut) -> str:
    """The counts of dropped files, for a message about missing images."""
    reasons = [f"{number:,} x {why}" for why, number in left_out.reasons().items()]
    return f" (left out: {'; '.join(reasons)})" if reasons else ""


def _images(root: Path, files: Files, nested: bool) -> Images:
    """Images of files, with the columns `path` and, if `nested`, `folder`: the folders below the class."""
    paths = [f"{files.folder}/{file}" for file in files.paths]
    columns = {"path": lambda: np.array([Path(path).relative_to(root).as_posix() for path in paths], object)}
    if nested:
        columns["folder"] = lambda: np.array(["/".join(file.split("/")[1:-1]) for file in files.paths], object)

    def raw(rows: Sequence[int]) -> list[Raw]:
        return [read(Path(paths[row])) for row in rows]

    return Images(files.labels, raw, lambda row: printable(paths[row]), columns, lambda: stamp(map(Path, paths)))


def _wordings(options: Options, classes: Sequence[str]) -> list[str]:
    """The names of the classes as captions write them."""
    names: dict[str, str] = {} if options.names is None else _names(at_home(options.names, key="data.names"), classes)
    return [names.get(name, name.replace("_", " ").replace("-", " ")) for name in classes]


def _names(path: Path, classes: Sequence[str]) -> dict[str, str]:
    """Read the file of `data.names`: folder of a class -> its name. Raises UserError for a wrong file."""
    try:
        text = yamltext.read(path)
        is_json = path.suffix.lower() == ".json"
        names: Any = from_json(text) if is_json else yamltext.parse_texts(text)
    except (OSError, ValueError) as error:
        raise UserError(f"data.names: {path} cannot be read ({reason(error)}); it must be JSON or YAML, folder: name") from None
    if not isinstance(names, dict) or not all(isinstance(name, str) and name.strip() for name in names.values()):
        raise UserError(f"data.names: {path} must map the folder of each class to a text; write folder: name on each line")
    if wrong := [name for name in names.values() if name_fault(name)]:
        raise UserError(f"data.names: {path}: the name {wrong[0]!a} holds {name_fault(wrong[0])}; write it without")
    result = {str(folder): name for folder, name in names.items()}
    if unknown := [folder for folder in result if folder not in classes]:
        raise UserError(f"data.names: {path}: there is no class folder '{unknown[0]}'{did_you_mean(unknown[0], classes)}")
    return result


def _few(names: Sequence[str]) -> str:
    """At most ten names, and how many more there are."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
