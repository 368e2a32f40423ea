"""What a job refuses or warns of before round 0, because the model sees it otherwise than people do."""

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from flora_hpc.building import warn_of_equal_captions
from flora_hpc.data.images import Dataset
from flora_hpc.errors import UserError
from tests.data.made_images import made

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
END = 49


def zoo(paired: bool = False) -> Dataset:
    names = ("cat", "lynx", "owl", "emu")
    rows = np.arange(4)
    return Dataset("zoo", names, names, tuple(f"a {name}" for name in names), made([0, 1, 2, 3]), rows, rows, paired)


def tokens(*rows: list[int]) -> torch.Tensor:
    return torch.tensor([row + [0] * (6 - len(row)) for row in rows])


def test_captions_of_the_same_tokens_are_two_names_for_one_class() -> None:
    with pytest.raises(
        UserError, match=r"classes 'cat' and 'owl' of zoo cannot be told apart: they have the same 3 tokens for the"
    ):
        warn_of_equal_captions(zoo(), tokens([1, 5, END], [1, 6, END], [1, 5, END], [1, 7, END]))


def test_captions_that_are_cut() -> None:
    cut = [1, 2, 3, 4, 5, END]
    with pytest.raises(
        UserError, match=r"'lynx' and 'emu' .* the same 6 tokens for the model, which cuts captions at 6; give each"
    ):
        warn_of_equal_captions(zoo(), tokens([1, 5, END], cut, [1, 6, END], cut))


def test_captions_of_pairs_may_repeat_themselves() -> None:
    (sentence,) = warn_of_equal_captions(zoo(paired=True), tokens([1, END], [1, 6, END], [1, END], [1, END]))
    assert sentence.startswith("2 of 4 captions have the same tokens as another one, such as 'a cat' and 'a owl'")


def test_captions_that_differ() -> None:
    assert warn_of_equal_captions(zoo(), tokens([1, 5, END], [1, 5, 6, END], [1, 6, END], [1, END])) == ()


def shapes(path: Path, names: list[str], caption: str) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs.update(class_names=json.dumps(names), encoding="raw", caption=caption)
        for part, shift in (("train", 0), ("test", 100)):
            file[f"{part}/images"] = np.arange(8 * 48, dtype=np.int64).reshape(8, 4, 4, 3).astype(np.uint8) + np.uint8(shift)
            file[f"{part}/labels"] = np.arange(8) % 2
    return path


def plan(path: Path, *more: str) -> tuple[str, ...]:
    settings = ("data.name=hdf5", f"data.path={path}", "partition.num_clients=2", *more)
    return ("plan", str(QUICKSTART), *(word for setting in settings for word in ("-s", setting)))


@pytest.mark.parametrize("method", ["flora", "fedlc"])
def test_plan_refuses_names_that_the_model_cuts(tmp_path: Path, invoke: Callable[..., str], method: str) -> None:
    path = shapes(tmp_path / "a.h5", ["very " * 80 + "large", "very " * 80 + "small"], "a {}")
    with pytest.raises(UserError, match=r"cannot be told apart: they have the same (\d+) tokens .*, which cuts captions at \1"):
        invoke(*plan(path, f"method.name={method}"))


def test_a_method_with_prompts_of_its_own_is_judged_by_them(tmp_path: Path, invoke: Callable[..., str]) -> None:
    path = shapes(tmp_path / "a.h5", ["large", "small"], "very " * 80 + "{}")
    assert "fedprompt" in invoke(*plan(path, "method.name=fedprompt"))
    with pytest.raises(UserError, match="cannot be told apart"):
        invoke(*plan(path))


def test_plan_shows_the_warnings_of_the_data(tmp_path: Path, invoke: Callable[..., str]) -> None:
    path = shapes(tmp_path / "a.h5", ["large", "small", "other"], "a {}")
    shown = " ".join(invoke(*plan(path)).split())
    assert "warning: 1 of 3 classes have no image, so they are possible answers even so: other" in shown
