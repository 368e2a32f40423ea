"""A folder of image files with one folder per class: PATH/CLASS/..., or PATH/train/CLASS/... beside PATH/test/CLASS/..."""

import json
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from pydantic import Field

from flora_hpc import yamltext
from flora_hpc.data.datasets._files import SUFFIXES, read
from flora_hpc.data.images import Dataset, DatasetOptions, Images, Raw, assemble, stamp
from flora_hpc.errors import UserError, did_you_mean

TESTS = ("test", "val", "valid", "validation")  # folders of test images; the first that is there


class Options(DatasetOptions):
    """Which folder, and how people write its classes."""

    path: Path = Field(description="the folder; test images are those of its folder test, val or valid beside train, or are drawn")
    names: Path | None = Field(
        None, description="a JSON or YAML file, folder of a class: how captions write it; by default _ and - become spaces"
    )


def build(options: Options) -> Dataset:
    """List the files; they are read when they are needed. Raises UserError for a folder without images in folders of classes."""
    path = options.path.expanduser()
    if path.is_file():
        raise UserError(f"data.path: {path} is a file; give a folder, or data.name: pairs or hdf5 for a file")
    if not path.is_dir():
        nearby = [folder.name for folder in path.parent.iterdir() if folder.is_dir()] if path.parent.is_dir() else []
        raise UserError(f"data.path: there is no folder {path}{did_you_mean(path.name, nearby)}")
    train, test = _parts(path)
    classes = _classes(train)
    if test is not None and (other := sorted(set(classes) ^ set(_classes(test)))):
        raise UserError(
            f"data.path: {train} and {test} have other classes: {_few(other)} in one of them only; make their folders the same"
        )
    found = [_files(folder, classes) for folder in (train, test) if folder is not None]
    filled = {label for files in found for _, label in files}
    if empty := [name for i, name in enumerate(classes) if i not in filled]:
        raise UserError(
            f"data.path: {path} has no images for {_few(empty)}; fill or remove the folders (images end in {', '.join(SUFFIXES)})"
        )
    if not all(found):
        raise UserError(f"data.path: {test if found[0] else train} holds no images; put some in, or remove {test}")
    nested = any(len(PurePath(file).parts) > 2 for files in found for file, _ in files)
    parts = [_images(path, folder, files, nested) for folder, files in zip((train, test), found, strict=False) if folder]
    wordings = _wordings(options, classes)
    return assemble(options, path.resolve().name, classes, wordings, parts[0], parts[1] if test is not None else None)


def _folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _parts(path: Path) -> tuple[Path, Path | None]:
    """The folder of the training images and that of the test images. A class may be called train, beside others.

    Folders of test images without folders of classes have no labels and are left alone.
    """
    folders = _folders(path)
    tests = [name for name in TESTS if name in folders]
    if folders and len(tests) == len(folders):
        raise UserError(
            f"data.path: {path} has {tests[0]}, but no train beside it; add it, or give {path / tests[0]} to split that"
        )
    if "train" not in folders or not (tests or folders == ["train"]):
        return path, None
    labelled = [path / name for name in tests if _folders(path / name)]
    return path / "train", labelled[0] if labelled else None


def _classes(path: Path) -> list[str]:
    classes = _folders(path)
    if not classes:
        raise UserError(f"data.path: {path} has no folders; it needs one for each class, with its images")
    return classes


def _files(path: Path, classes: Sequence[str]) -> list[tuple[str, int]]:
    """Each image file, relative to `path`, with the number of its class. Hidden files are none, such as macOS's ._photo.jpg."""
    from torchvision.datasets import DatasetFolder  # seconds of imports that other datasets need not pay

    start = len(str(path)) + 1

    def is_image(file: str) -> bool:
        return file.lower().endswith(SUFFIXES) and "/." not in file[start - 1 :]

    numbers = {name: i for i, name in enumerate(classes)}
    found = DatasetFolder.make_dataset(path, numbers, is_valid_file=is_image, allow_empty=True)
    return [(file[start:], label) for file, label in found]


def _images(root: Path, path: Path, files: Sequence[tuple[str, int]], nested: bool) -> Images:
    paths = [path / file for file, _ in files]
    columns = {"path": lambda: np.array([file.relative_to(root).as_posix() for file in paths], object)}
    if nested:
        columns["folder"] = lambda: np.array(["/".join(PurePath(file).parts[1:-1]) for file, _ in files], object)

    def raw(rows: Sequence[int]) -> list[Raw]:
        return [read(paths[row]) for row in rows]

    labels = np.array([label for _, label in files], np.int64)
    return Images(labels, raw, lambda row: str(paths[row]), columns, lambda: stamp(paths))


def _wordings(options: Options, classes: Sequence[str]) -> list[str]:
    """How captions write the classes."""
    given: dict[str, str] = {} if options.names is None else _names(options.names.expanduser(), classes)
    return [given.get(name, name.replace("_", " ").replace("-", " ")) for name in classes]


def _names(path: Path, classes: Sequence[str]) -> dict[str, str]:
    try:
        text = yamltext.read(path)
        is_json = path.suffix.lower() == ".json"
        names: Any = json.loads(text, object_pairs_hook=_once) if is_json else yamltext.parse_texts(text)
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"data.names: {path} cannot be read ({reason}); it must be JSON or YAML, folder: name") from None
    if not isinstance(names, dict) or not all(isinstance(name, str) and name.strip() for name in names.values()):
        raise UserError(f"data.names: {path} must map the folder of each class to a text; write folder: name on each line")
    result = {str(folder): name for folder, name in names.items()}
    if unknown := [folder for folder in result if folder not in classes]:
        raise UserError(f"data.names: {path}: there is no class folder '{unknown[0]}'{did_you_mean(unknown[0], classes)}")
    return result


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError for a key that stands twice."""
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return dict(pairs)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
