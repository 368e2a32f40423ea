"""A run goes on with the data and the weights that it began with, or not at all."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from flora_hpc import checkpoint, experiment
from flora_hpc.cli import app
from flora_hpc.clip.load import Clip
from flora_hpc.errors import UserError
from flora_hpc.records import hdf5file
from tests.conftest import ROOT

Invoke = Callable[..., str]


def command(out: Path, rounds: int, *settings: str) -> list[str]:
    settings = ("partition={name: iid, num_clients: 2}", "client.group_size=2", f"rounds={rounds}", *settings)
    flags = [word for setting in settings for word in ("-s", setting)]
    return ["run", str(ROOT / "configs" / "quickstart.yaml"), *flags, "--out", str(out)]


def refused(out: Path, *settings: str) -> str:
    """What `--resume` with one more round says; nothing is written."""
    before = (out / "run.h5").read_bytes(), sorted(out.rglob("*"))
    with pytest.raises(UserError) as error:
        CliRunner().invoke(app, [*command(out, 2, *settings), "--resume"], catch_exceptions=False)
    assert before == ((out / "run.h5").read_bytes(), sorted(out.rglob("*")))
    start, _, rest = str(error.value).partition(" began with other data, weights or code: ")
    assert start == f"--resume: the run in {out}"
    what, _, cure = rest.partition(" changed since; ")
    assert cure == "put back what it began with, or start a new run with another --out"
    return what


@pytest.mark.parametrize(
    ("what", "store", "method"),
    [("labels", "auto", "flora"), ("images", "auto", "flora"), ("images", "none", "flora"), ("images", "none", "fedfft")],
)
def test_an_hdf5_file_that_changed(what: str, store: str, method: str, squares: Path, tmp_path: Path, invoke: Invoke) -> None:
    settings = (f"data={{name: hdf5, path: {squares}}}", f"features.store={store}", f"method={{name: {method}}}", "client.epochs=1")
    out = tmp_path / "run"
    invoke(*command(out, 1, *settings))
    with h5py.File(squares, "r+") as file:
        if what == "labels":
            file["train/labels"][...] = 9 - file["train/labels"][...]
        else:
            file["train/images"][3] = 0
    assert refused(out, *settings) == f"{what} (data.path: {squares})"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for part, number in (("train", 4), ("test", 2)):
        for name, shade in (("dark", 10), ("light", 200)):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for i in range(number):
                Image.new("RGB", (8, 8), (shade + i, 0, 0)).save(folder / f"{i}.png")
    return tmp_path / "photos"


def test_a_folder_that_changed(photos: Path, tmp_path: Path, invoke: Invoke) -> None:
    """A picture is painted over and keeps its name, size and date; then one more comes; then a class has another name."""
    settings, out = (f"data={{name: imagefolder, path: {photos}}}",), tmp_path / "run"
    invoke(*command(out, 1, *settings))
    picture = photos / "train" / "dark" / "1.png"
    times, data = (picture.stat().st_atime_ns, picture.stat().st_mtime_ns), picture.read_bytes()
    Image.new("RGB", (8, 8), (17, 0, 0)).save(picture)
    assert len(picture.read_bytes()) == len(data)
    os.utime(picture, ns=times)
    assert refused(out, *settings) == f"images (data.path: {photos})"
    picture.write_bytes(data)
    shutil.copy(picture, picture.with_name("9.png"))
    assert refused(out, *settings).startswith("labels, split (data.path: ")
    picture.with_name("9.png").unlink()
    for part in ("train", "test"):
        (photos / part / "dark").rename(photos / part / "black")
    assert refused(out, *settings) == f"captions (data.path: {photos})"
    for part in ("train", "test"):
        (photos / part / "black").rename(photos / part / "dark")
    assert "goes on: after round 1" in invoke(*command(out, 2, *settings), "--resume"), "all is as it was"


def test_captions_of_pairs_that_changed(photos: Path, tmp_path: Path, invoke: Invoke) -> None:
    table, lines = tmp_path / "pairs.csv", ["image,caption"]
    lines += [f"photos/train/{name}/{i}.png,a {name} square {i}" for name in ("dark", "light") for i in range(4)]
    table.write_text("\n".join(lines))
    settings, out = (f"data={{name: pairs, path: {table}}}", "client.loss=contrastive"), tmp_path / "run"
    invoke(*command(out, 1, *settings))
    table.write_text(table.read_text().replace("dark square 2", "very dark square"))
    assert refused(out, *settings).startswith("captions")


def test_weights_that_changed(squares: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    out, settings = tmp_path / "run", (f"data={{name: hdf5, path: {squares}}}",)
    invoke(*command(out, 1, *settings))
    load = experiment.load

    def others(*arguments: Any) -> Clip:
        clip = load(*arguments)
        clip.model.logit_scale.data += 1e-3
        return clip

    monkeypatch.setattr(experiment, "load", others)
    assert refused(out, *settings) == "model weights (model.name: flora-tiny)"


def test_clients_of_a_column_that_changed(squares: Path, tmp_path: Path, invoke: Invoke) -> None:
    with h5py.File(squares, "r+") as file:
        file["train/writer"] = np.arange(10) % 2
        file["test/writer"] = np.arange(10) % 2
    out = tmp_path / "run"
    settings = (f"data={{name: hdf5, path: {squares}}}", "partition={name: natural, column: writer, num_clients: 2}")
    invoke(*command(out, 1, *settings))
    with h5py.File(squares, "r+") as file:
        file["train/writer"][...] = np.arange(10) // 5
    assert refused(out, *settings) == f"clients (partition.name: natural, data.path: {squares})"


def test_a_run_from_before_schema_5_goes_on_and_says_what_it_cannot_know(squares: Path, tmp_path: Path, invoke: Invoke) -> None:
    """Its checkpoints name their run by a digest of another text, and nothing says what its data were."""
    out, settings = tmp_path / "run", (f"data={{name: hdf5, path: {squares}}}",)
    invoke(*command(out, 1, *settings))
    config = yaml.safe_load((out / "config.yaml").read_text()) | {"rounds": 2}
    (out / "config.yaml").write_text(yaml.safe_dump(config))
    with h5py.File(out / "run.h5", "r+") as file:
        file.attrs["config"] = yaml.safe_dump(config)
        file.attrs.modify("status", np.bytes_("stopped"))
        del file.attrs["identity"]
    point = checkpoint.read(checkpoint.path(out / "checkpoint", 1).read_bytes())
    checkpoint.write(out / "checkpoint", checkpoint.Checkpoint(1, point.adapter, point.server), "a digest that nobody computes now")
    said = invoke(*command(out, 2, *settings), "--resume")
    assert "goes on: after round 1; an older flora-hpc wrote the run: whether its data and weights" in said
    assert json.loads(hdf5file.read(out, ())[0]["identity"])["labels"]
