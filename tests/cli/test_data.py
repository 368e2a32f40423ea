"""`flora-hpc data` on miniatures of datasets, a few PNG files, and a small store of features."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import h5py
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from flora_hpc.cli import _cache, app
from flora_hpc.cli import data as cli_data
from flora_hpc.data import look
from flora_hpc.data import pack as packing
from flora_hpc.data import store as stores
from flora_hpc.data.datasets._catalog import CATALOG, Archive
from flora_hpc.data.store import Store
from tests.cli.test_bad_input import call
from tests.conftest import ROOT
from tests.data import miniatures

Invoke = Callable[..., str]
Refused = Callable[..., str]
CONFIG = ROOT / "configs" / "quickstart.yaml"
BY_HAND = ("cars", "fer2013")
DAY = 86400.0


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command that must fail with exit code 2: its sentence on standard error."""

    def answer(*arguments: object) -> str:
        code, error = call(["data", *map(str, arguments)], monkeypatch, capsys)
        assert code == 2, error
        assert error.startswith("flora-hpc: "), error
        assert error.count("flora-hpc: ") == 1, error
        assert "Traceback" not in error
        return error.removeprefix("flora-hpc: ").removesuffix("\n")

    return answer


def wide(*arguments: object, code: int = 0) -> Result:
    """Run a command in a terminal that folds no line, with standard output and standard error apart."""
    result = CliRunner(env={"COLUMNS": "250"}).invoke(app, ["data", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def cells(line: str) -> list[str]:
    """The cells of a line of a table, divided by two spaces or more."""
    return re.split(" {2,}", line.strip())


def set_(*overrides: str) -> list[str]:
    return [word for override in overrides for word in ("-s", override)]


@pytest.fixture
def trees(tmp_path: Path) -> Path:
    """Three training images and one test image of each of two classes. Their names have brackets, which are markup to rich."""
    folder = tmp_path / "[old] trees"
    for number, name in enumerate(("elm_tree", "oak")):
        for part, count in (("train", 3), ("test", 1)):
            for i in range(count):
                path = folder / part / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (100 * number, 40 * i, 90)).save(path)
    return folder


@pytest.fixture
def damaged(trees: Path) -> Path:
    """The trees, with one training image and one test image that cannot be decoded. Six images remain."""
    (trees / "train" / "oak" / "1.png").write_bytes(b"no image")
    (trees / "test" / "elm_tree" / "0.png").write_bytes(b"")
    (trees / "test" / "elm_tree" / "1.png").write_bytes((trees / "train" / "elm_tree" / "0.png").read_bytes())
    return trees


def of(folder: Path, *more: str) -> list[str]:
    """Overrides for this folder as the dataset, split evenly between two clients."""
    return set_("data.name=imagefolder", f"data.path={folder}", "partition.name=iid", "partition.num_clients=2", *more)


# --- list and fetch


@pytest.fixture
def offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Offer Tiny ImageNet, 3 training and 4 test images, at an address of this machine. Returns an empty root."""
    miniatures.write("tiny_imagenet", tmp_path / "laid", monkeypatch)
    archive = Path(shutil.make_archive(str(tmp_path / "archive"), "zip", tmp_path / "laid"))
    facts = replace(CATALOG["tiny_imagenet"], train={"train": 3}, test={"val": 4})
    archives = (Archive(archive.as_uri(), "tiny-imagenet-200.zip", miniatures.md5(archive)),)
    monkeypatch.setitem(CATALOG, "tiny_imagenet", replace(facts, archives=archives))
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def test_list_says_what_is_here_and_how_to_get_the_rest(offered: Path) -> None:
    (offered / "fer2013").mkdir()
    (offered / "fer2013" / "fer2013.csv").touch()
    message = wide("list", "--root", offered).stdout.splitlines()
    rows = {row[1]: row for row in map(cells, message) if len(row) == 6}
    assert rows["fer2013"][:5] == ["here", "fer2013", "35,887", "7", "300.0 MB"]
    assert rows["cars"][:5] == ["by hand", "cars", "16,185", "196", "2.0 GB"]
    assert rows["tiny_imagenet"][:4] == ["fetch", "tiny_imagenet", "7", "3"]
    assert {name for name, row in rows.items() if row[0] == "fetch"} == {*CATALOG} - {*BY_HAND}
    assert rows.keys() - {"name"} == {*CATALOG}


def test_list_tells_what_to_do_by_hand_once_and_in_one_line(tmp_path: Path) -> None:
    """Users cannot click a folded address, and brackets in a folder's name are no markup."""
    root = tmp_path / "[data]"
    message = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["data", "list", "--root", str(root)]).stdout.splitlines()
    (fer,) = [line for line in message if line.startswith("fer2013: ")]
    assert fer.startswith(f"fer2013: there is no fer2013/fer2013.csv or fer2013/icml_face_data.csv in {root}; ")
    assert "https://www.kaggle.com/c/challenges-in-representation-learning-facial-expression-recognition-challenge" in fer
    assert sum(line.startswith("cars: ") for line in message) == 1
    assert "flora-hpc data fetch NAME" in "".join(message[-3:])
    assert message[-1].startswith("nothing to fetch for: digits")


def test_list_for_programs(offered: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLORA_HPC_DATA", str(offered))
    output = json.loads(invoke("data", "list", "--json"))
    assert output.keys() == CATALOG.keys()
    assert output["tiny_imagenet"]["here"] is False
    assert output["tiny_imagenet"]["missing"].startswith(f"tiny_imagenet: there is no tiny-imagenet-200/wnids.txt in {offered}; ")
    invoke("data", "fetch", "tiny_imagenet")
    assert json.loads(invoke("data", "list", "--json"))["tiny_imagenet"] == {"here": True, "images": 7, "missing": None}
    elsewhere = json.loads(invoke("data", "list", "--json", "--root", offered.parent))
    assert elsewhere["tiny_imagenet"]["here"] is False


def test_fetch_brings_a_dataset_and_says_what_is_here(offered: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = "tiny_imagenet: counting its images\n"
    here = "tiny_imagenet: 3 training and 4 test images of 3 classes are here\n"
    message = invoke("data", "fetch", "tiny_imagenet", "--root", offered)
    assert message == f"tiny_imagenet: unpacking\n{counting}{here}"
    assert (offered / "tiny-imagenet-200" / "wnids.txt").is_file()
    gone = replace(CATALOG["tiny_imagenet"], archives=(Archive("http://127.0.0.1:9/", "gone.zip", None),))
    monkeypatch.setitem(CATALOG, "tiny_imagenet", gone)
    assert invoke("data", "fetch", "tiny_imagenet", "--root", offered) == counting + here, "what is here needs no network"


def test_fetch_of_what_needs_none(refused: Refused, tmp_path: Path) -> None:
    assert refused("fetch", "digits", "--root", tmp_path).startswith("digits is not fetched: it is part of a library, or your own")


def test_fetch_knows_no_such_name(refused: Refused, tmp_path: Path) -> None:
    message = refused("fetch", "cifar11", "--root", tmp_path)
    assert message.startswith("no dataset 'cifar11' that can be fetched; did you mean 'cifar10'? (aircraft, ")


def test_fetch_of_what_must_be_got_by_hand_says_how(refused: Refused, tmp_path: Path) -> None:
    message = refused("fetch", "cars", "--root", tmp_path)
    assert message.startswith(f"cars: there is no stanford_cars/cars_train in {tmp_path}; ")
    assert message.count("\n") == 0


def test_fetch_without_a_network(offered: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/a.zip"  # and when it is closed, nobody listens there
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    facts = replace(CATALOG["tiny_imagenet"], archives=(Archive(url, "a.zip", None),))
    monkeypatch.setitem(CATALOG, "tiny_imagenet", facts)
    message = refused("fetch", "tiny_imagenet", "--root", offered)
    assert message.startswith(f"{url} cannot be reached (")
    assert message.endswith("); fetch on a machine with a network, such as a login node, and share data.root")
    assert list(offered.iterdir()) == []


# --- pack


def test_a_dataset_with_a_name_is_packed(offered: Path, invoke: Invoke, tmp_path: Path) -> None:
    invoke("data", "fetch", "tiny_imagenet", "--root", offered)
    out = tmp_path / "tiny.h5"
    message = invoke("data", "pack", "tiny_imagenet", *set_(f"data.root={offered}"), "--out", out).splitlines()
    assert message[0].startswith(f"{out}: 3 training and 4 test images as jpeg, ")
    assert message[1:] == [f"use it: -s data.name=hdf5 -s data.path={out}"]
    with h5py.File(out) as file:
        assert (file["train/labels"][()].tolist(), file["test/labels"][()].tolist()) == ([0, 1, 2], [0, 1, 2, 1])


def test_the_data_of_a_configuration_is_packed(trees: Path, invoke: Invoke, tmp_path: Path) -> None:
    """Other sections of the file do not matter; an override replaces a value of the file."""
    config, out = tmp_path / "some.yaml", tmp_path / "some.h5"
    config.write_text(f"data: {{name: imagefolder, path: nowhere, caption: 'a {{}}!'}}\nmodel: {{name: {tmp_path}/gone}}\n")
    invoke("data", "pack", config, *set_(f"data.path={trees}"), "--out", out)
    with h5py.File(out) as file:
        assert file.attrs["caption"] == "a {}!"
        assert json.loads(file.attrs["class_names"]) == ["elm_tree", "oak"]


def test_a_packed_folder_runs(trees: Path, invoke: Invoke, tmp_path: Path) -> None:
    """With exactly the printed options."""
    out = tmp_path / "trees.h5"
    message = invoke("data", "pack", "imagefolder", *set_(f"data.path={trees}"), "--out", out).splitlines()
    assert message[0].startswith(f"{out}: 6 training and 2 test images as png, ")
    words = message[-1].removeprefix("use it: ").split()
    few = set_("partition.name=iid", "partition.num_clients=2", "rounds=1", "features.store=none")
    invoke("run", CONFIG, *words, *few, "--out", tmp_path / "run")
    with h5py.File(tmp_path / "run" / "run.h5") as file:
        assert file.attrs["status"] == b"finished"


def test_a_file_that_is_there_is_kept_unless_asked(trees: Path, invoke: Invoke, refused: Refused, tmp_path: Path) -> None:
    out = tmp_path / "trees.h5"
    out.write_bytes(b"years of work")
    arguments = ["imagefolder", *set_(f"data.path={trees}"), "--out", out]
    assert refused("pack", *arguments).startswith(f"{out} exists already; ")
    assert out.read_bytes() == b"years of work"
    invoke("data", "pack", *arguments, "--replace")
    with h5py.File(out) as file:
        assert len(file["train/labels"]) == 6


def test_damaged_images_are_not_packed_unless_skipped(damaged: Path, invoke: Invoke, refused: Refused, tmp_path: Path) -> None:
    out, data = tmp_path / "trees.h5", set_(f"data.path={damaged}")
    lines = [
        f"{damaged}/train/oak/1.png: it is no image that can be decoded",
        f"{damaged}/test/elm_tree/0.png: it is empty",
    ]
    message = refused("pack", "imagefolder", *data, "--out", out).splitlines()
    assert message[0].startswith(f"2 of 9 images of {damaged.name} cannot be decoded; ")
    assert [line.strip() for line in message[1:]] == lines
    assert [path.name for path in tmp_path.iterdir()] == [damaged.name]
    message = invoke("data", "pack", "imagefolder", *data, *set_("data.damaged=skip"), "--out", out).splitlines()
    assert message[:2] == [f"left out: {line}" for line in lines]
    assert message[2].startswith(f"{out}: 5 training and 2 test images as png, ")


def test_a_column_that_hdf5_cannot_hold_is_named(trees: Path, invoke: Invoke, tmp_path: Path) -> None:
    """The name of a file need not be UTF-8."""
    (trees / "train" / "oak" / "0.png").rename(os.fsdecode(os.fsencode(trees / "train" / "oak") + b"/\xff.png"))
    message = invoke("data", "pack", "imagefolder", *set_(f"data.path={trees}"), "--out", tmp_path / "trees.h5")
    assert message.splitlines()[0] == "note: column path is neither numbers nor texts, and is not in the file"


@pytest.mark.parametrize(
    ("what", "overrides", "message"),
    [
        ("digit", [], "data.name: no dataset 'digit'; did you mean 'digits'? (aircraft, "),
        ("configs/quickstrat.yaml", [], "configs/quickstrat.yaml: there is no such file; did you mean 'quickstart.yaml'?"),
        ("imagefolder", [], "data.path: is required"),
        ("imagefolder", ["data.path=configs/papers"], "data.path: there is no folder configs/papers; did you mean 'paper'?"),
        ("digits", ["data.test_fractoin=0.2"], "data.test_fractoin: unknown key; did you mean data.test_fraction?"),
        ("digits", ["data.damaged=skipp"], "data.damaged: must be "),
        ("digits", ["data"], "-s data: write -s key=value"),
    ],
)
def test_mistakes_in_what_is_packed(what: str, overrides: list[str], message: str, refused: Refused, tmp_path: Path) -> None:
    error = refused("pack", what, *set_(*overrides), "--out", tmp_path / "out.h5")
    assert error.startswith(message)
    assert error.count("\n") == 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_not_made(refused: Refused, tmp_path: Path) -> None:
    assert refused("pack", "digits", "--out", tmp_path / "deep" / "out.h5") == f"{tmp_path}/deep is no folder; create it first"


def test_a_packing_that_a_job_ends_leaves_nothing(trees: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(dataset: Any, partial: Path, *rest: Any) -> NoReturn:
        partial.write_text("half")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
        pytest.fail("the signal came to nobody")

    monkeypatch.setattr(packing, "_write", write)
    out = tmp_path / "out"
    out.mkdir()
    words = ["data", "pack", "imagefolder", *set_(f"data.path={trees}"), "--out", str(out / "trees.h5")]
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a run in this process may have left it ignored
    try:
        assert CliRunner().invoke(app, words).exit_code == 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [*out.iterdir()] == []


def test_pack_must_be_told_where_to(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, error = call(["data", "pack", "digits"], monkeypatch, capsys)
    assert (code, error.count("Missing option '--out'")) == (2, 1)


# --- inspect


def test_inspect_shows_who_holds_what(squares: Path) -> None:
    """Ten images of ten classes over two clients, so one client holds each class.

    The Jensen-Shannon divergence of 5 x 0.2 from 10 x 0.1, whose mean is 5 x 0.15 and 5 x 0.05, is in bits
    (log2(4/3) + log2(2/3) / 2 + log2(2) / 2) / 2 = (0.415 - 0.292 + 0.5) / 2 = 0.31.
    """
    data = set_("data.name=hdf5", f"data.path={squares}", "partition.name=iid", "partition.num_clients=2")
    message = wide("inspect", CONFIG, *data).stdout
    assert "note: partition.name=iid: dropped beta, known to 'dirichlet' only\n" in message
    lines = reversed(message.replace("│", "  ").splitlines())  # the key below has numbers too: the first line of a name counts
    rows = {row[0]: row[1:] for row in map(cells, lines)}
    assert [rows[client][0] for client in ("all", "0", "1")] == ["10", "5", "5"]
    assert [rows[client][-2:] for client in ("0", "1")] == [["5", "0.31"], ["5", "0.31"]]
    assert rows["data"] == ["squares, 10 training images; 10 test images, which no client holds"]
    assert rows["partition"][0].startswith("iid")
    assert rows["classes per client"] == ["5 of 10 (median 5)"]
    assert rows["divergence"][0].startswith("0.31 in the mean, 0.31 at worst; ")
    assert rows["nobody's"] == ["none"]
    last_line = message.splitlines()[-1]
    assert last_line == "Too few examples to tell from chance: every client holds 5 of 10 classes; each has 5 examples."


def test_inspect_keeps_to_a_narrow_terminal(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    message = invoke("data", "inspect", CONFIG, *set_("partition.num_clients=200", "partition.examples_per_client=20"))
    assert max(map(len, message.splitlines())) <= 80


def test_inspect_for_programs_prints_nothing_but_json(trees: Path, invoke: Invoke) -> None:
    """Two clients with one image of each of two classes. Notes would break the JSON."""
    output = json.loads(
        invoke("data", "inspect", CONFIG, *of(trees), *set_("partition.name=fewshot", "partition.shots=1"), "--json")
    )
    assert output["sentence"] == "IID: every client holds all 2 classes; each has 2 examples."
    assert (output["dataset"], output["partition"], output["num_test"]) == (trees.name, "fewshot, shots 1", 2)
    assert (output["classes"], output["clients"], output["counts"]) == (["elm tree", "oak"], [0, 1], [[1, 1], [1, 1]])
    assert (output["num_examples"], output["num_nobodys"], output["divergence_mean"]) == (4, 2, 0)
    assert "damaged" not in output


def test_few_shots_leave_images_to_nobody(trees: Path) -> None:
    message = wide("inspect", CONFIG, *of(trees), *set_("partition.name=fewshot", "partition.shots=1")).stdout
    assert re.search(r"nobody's +│ *2 of 6 training images", message)


def test_a_population_is_larger_than_its_data(squares: Path) -> None:
    """1,000 clients draw 4 of 10 images each: 4,000 in all, and each image 400 times on average."""
    data = set_("data.name=hdf5", f"data.path={squares}", "partition.name=iid", "partition.num_clients=1000")
    message = wide("inspect", CONFIG, *data, *set_("partition.examples_per_client=4")).stdout
    assert "30 of 1,000 clients, spread evenly from the largest to the smallest" in message
    assert "4,000, drawn by each client from 10 images; one that is held is in 400.0 clients in the mean" in message
    assert "examples per client 4" in message


def test_inspect_needs_no_model() -> None:
    """No model is needed, not even one that exists. `run` needs it; see MISTAKES in test_bad_input."""
    message = wide("inspect", CONFIG, *set_("model.name=ViT-B-33")).stdout
    assert message.splitlines()[-1].startswith("Skewed: clients hold 6 to 9 of 10 classes; ")


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG\r\n\x1a\n"), ("a.svg", b"<?xml")])
def test_inspect_draws(trees: Path, tmp_path: Path, name: str, start: bytes) -> None:
    result = wide("inspect", CONFIG, *of(trees), "--picture", tmp_path / name, "--json")
    assert (tmp_path / name).read_bytes().startswith(start)
    assert result.stderr == f"drawn: {tmp_path / name}\n"
    assert json.loads(result.stdout)["num_clients"] == 2


def test_a_picture_of_another_kind_is_refused_before_anything_long(
    trees: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> NoReturn:
        raise AssertionError("hours of decoding")

    monkeypatch.setattr(look, "inspect", never)
    message = refused("inspect", CONFIG, *of(trees), "--check", "--picture", tmp_path / "a.jpg")
    assert message.startswith(f"{tmp_path}/a.jpg: a picture is a .png or a .svg file, not '.jpg'; ")
    assert not (tmp_path / "a.jpg").exists()


def test_inspect_names_damaged_images(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damaged images after the first block are named, too."""
    monkeypatch.setattr(cli_data, "BATCH", 2)
    lines = [
        f"{damaged}/train/oak/1.png: it is no image that can be decoded",
        f"{damaged}/test/elm_tree/0.png: it is empty",
    ]
    message = wide("inspect", CONFIG, *of(damaged), "--check", code=2).stdout
    assert message.splitlines()[-3:-1] == [f"cannot be decoded: {line}" for line in lines]
    assert message.splitlines()[-1] == (
        "2 of 9 images cannot be decoded; a run refuses them: mend or remove them, or set data.damaged: skip to leave them out"
    )
    assert json.loads(wide("inspect", CONFIG, *of(damaged), "--check", "--json", code=2).stdout)["damaged"] == lines
    assert "a run refuses them" not in wide("inspect", CONFIG, *of(damaged), "-s", "data.damaged=skip", "--check").stdout


def test_inspect_tells_what_is_left_out_and_what_shows_nothing(trees: Path) -> None:
    (trees / "train" / "oak" / "[notes].txt").write_text("text")
    message = wide("inspect", CONFIG, *of(trees), "--check").stdout
    assert "\nleft out: 1 file: no image, by its first bytes, such as train/oak/[notes].txt\n" in message
    assert "\nwarning: 8 of 8 images looked at show hardly anything, " in message
    output = json.loads(wide("inspect", CONFIG, *of(trees), "--json").stdout)
    assert output["left_out"] == {"no image, by its first bytes, such as train/oak/[notes].txt": 1}
    assert output["warnings"] == [], "pictures are looked at by --check alone"


def test_inspect_writes_who_holds_what(trees: Path, tmp_path: Path, refused: Refused) -> None:
    result = wide("inspect", CONFIG, *of(trees), "--rows", tmp_path / "rows.csv", "--json")
    assert result.stderr == f"written: {tmp_path}/rows.csv\n"
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    assert (lines[0], len(lines), lines[-1]) == ("client,row,split,label,class,path", 9, "-1,7,test,1,oak,test/oak/0.png")
    assert refused("inspect", CONFIG, *of(trees), "--rows", "rows.txt").startswith("--rows: rows.txt is neither ")
    assert refused("inspect", CONFIG, "--clients", "3").startswith("--clients: says of how many clients ")


def test_inspect_finds_all_images_sound(trees: Path) -> None:
    assert wide("inspect", CONFIG, *of(trees), "--check").stdout.endswith("\nall 8 images can be decoded\n")
    assert json.loads(wide("inspect", CONFIG, *of(trees), "--check", "--json").stdout)["damaged"] == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["partition.num_clients=5000"], "5000 clients for 1438 training examples leaves some without any"),
        (["partition.bta=1"], "-s partition.bta: unknown key; did you mean partition.beta?"),
        (["data.name=cifar10", "data.root=/nowhere"], "cifar10: there is no cifar-10-batches-py/data_batch_1 in /nowhere; "),
    ],
)
def test_mistakes_in_what_is_inspected(overrides: list[str], message: str, refused: Refused) -> None:
    assert refused("inspect", CONFIG, *set_(*overrides)).count(message) == 1


# --- embed


def test_features_are_computed_once(trees: Path, invoke: Invoke, tmp_path: Path) -> None:
    arguments = ["data", "embed", CONFIG, *of(trees, f"features.store={tmp_path}/store")]
    first, second = invoke(*arguments).splitlines(), invoke(*arguments).splitlines()
    (kept,) = (tmp_path / "store" / "features").iterdir()
    assert first[-2] == f"{trees.name} through flora-tiny: 8 images, 8 of them computed now"
    assert first[-1].startswith(f"kept: {kept} (")
    assert second[-2] == f"{trees.name} through flora-tiny: 8 images, 0 of them computed now"
    (row,) = json.loads(invoke("data", "cache", "--store", tmp_path / "store", "--json"))["features"]
    assert (row["key"], row["dataset"], row["images"], row["state"]) == (kept.stem, trees.name, 8, "complete")


def test_features_that_nobody_would_keep_are_not_computed(refused: Refused) -> None:
    message = refused("embed", CONFIG, *set_("features.store=none"))
    assert message.startswith("features.store: is none, so that nothing would be kept; ")


def test_damaged_images_are_named_and_the_others_kept(damaged: Path, invoke: Invoke, refused: Refused, tmp_path: Path) -> None:
    arguments = [CONFIG, *of(damaged, f"features.store={tmp_path}/store")]
    message = refused("embed", *arguments)
    for part in (
        "2 of 9 images cannot be decoded (",
        f"{damaged}/train/oak/1.png: it is no image that can be decoded",
        f"{damaged}/test/elm_tree/0.png: it is empty",
        "set data.damaged: skip",
    ):
        assert message.count(part) == 1
    message = invoke("data", "embed", *arguments, *set_("data.damaged=skip"))
    assert message.splitlines()[-3:-1] == [
        f"{damaged.name} through flora-tiny: 9 images, 0 of them computed now",
        "left out: 2 images that cannot be decoded; their features are NaN",
    ]


def test_a_mistake_in_the_configuration_of_embed(refused: Refused) -> None:
    assert refused("embed", CONFIG, *set_("features.presicion=bf16")) == (
        "-s features.presicion: unknown key; did you mean features.precision?"
    )


@pytest.mark.mpi
def test_two_ranks_share_the_work(
    flora: Callable[..., subprocess.CompletedProcess[str]], mpiexec: list[str], invoke: Invoke, tmp_path: Path
) -> None:
    arguments = ["data", "embed", CONFIG, *set_(f"features.store={tmp_path}/store")]
    result = flora(*arguments, under=[*mpiexec, "-n", "2"])
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0] == "digits through flora-tiny: 1,797 images, 1,797 of them computed now"
    assert len(result.stdout.splitlines()) == 2, "only one of them speaks"
    assert "1,797 images, 0 of them computed now" in invoke(*arguments), "one rank finds what two have computed"


# --- cache


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """`abc1`, used two hours ago; `abd2`, of another precision, 5 days ago; `fff3`, an incomplete set with one block, now."""
    opened = Store(tmp_path / "[store]")
    for key, days, facts in (
        ("abc1", 1 / 12, {"dataset": "[old] trees", "model": "flora-tiny", "images": "1234", "precision": "fp32"}),
        ("abd2", 5, {"dataset": "digits", "model": "ViT-B-16, openai", "images": "2", "precision": "bf16"}),
    ):
        opened.add_block(key, 0, torch.ones(2, 100), {})
        opened.complete(key, [2], facts)
        age(opened.folder / "features" / f"{key}.safetensors", days)
    opened.add_block("fff3", 0, torch.ones(2, 3), {})
    return opened.folder


def age(path: Path, days: float) -> None:
    """Set the times of a file, or of all files of a folder, to so long ago."""
    for each in [*path.iterdir()] if path.is_dir() else [path]:
        os.utime(each, (time.time() - days * DAY - 5,) * 2)


def keys(invoke: Invoke, store: Path, *arguments: object) -> list[str]:
    """The keys that are listed after a command."""
    return [row["key"] for row in json.loads(invoke("data", "cache", "--store", store, "--json", *arguments))["features"]]


def size(store: Path, key: str) -> int:
    return (store / "features" / f"{key}.safetensors").stat().st_size


def test_cache_lists_what_was_used_last_first(store: Path) -> None:
    message = wide("cache", "--store", store).stdout.splitlines()
    assert message[0].rstrip() == f"features in {store}"
    rows = [cells(line) for line in message if re.search("complete|unfinished", line)]
    assert [(row[0], row[1], row[2], row[3], row[5], row[6]) for row in rows] == [
        ("fff3", "?", "?", "?", "just now", "unfinished"),
        ("abc1", "[old] trees", "flora-tiny", "1,234", "2 h ago", "complete"),
        ("abd2", "digits", "ViT-B-16, openai, bf16", "2", "5 days ago", "complete"),
    ]
    assert message[-1].startswith("3 sets of features, ")


def test_cache_for_programs(store: Path, invoke: Invoke) -> None:
    output = json.loads(invoke("data", "cache", "--store", store, "--json"))
    assert (output["store"], output["removed"], output["freed_bytes"]) == (str(store), [], 0)
    row = output["features"][1]
    assert row.pop("used").startswith("20")
    assert row == {
        "key": "abc1",
        "dataset": "[old] trees",
        "model": "flora-tiny",
        "images": 1234,
        "precision": "fp32",
        "bytes": size(store, "abc1"),
        "state": "complete",
    }


def test_features_go_by_their_first_letters(store: Path, invoke: Invoke) -> None:
    """Incomplete sets are removed, too, whatever their age."""
    freed = size(store, "abd2") + sum(path.stat().st_size for path in next((store / "features").glob("fff3.*.blocks")).iterdir())
    output = json.loads(invoke("data", "cache", "--store", store, "--remove", "abd", "--remove", "f", "--json"))
    assert (output["removed"], output["freed_bytes"]) == (["abd2", "fff3"], freed)
    assert [row["key"] for row in output["features"]] == ["abc1"]
    assert [path.name for path in (store / "features").iterdir()] == ["abc1.safetensors"]


def test_cache_says_what_it_removed(store: Path) -> None:
    """800 bytes of features and a header."""
    last = wide("cache", "--store", store, "--remove", "abc").stdout.splitlines()[-1]
    assert re.fullmatch(r"removed 1, (8|9)\d\d bytes|removed 1, 1\.[0-2] kB", last)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("ab", "--remove ab: 2 features begin so; give more letters"),
        ("x", "--remove x: there are no such features"),
        ("fff4", "--remove fff4: there are no such features; did you mean 'fff3'?"),
        ("", "--remove : 3 features begin so; give more letters"),
    ],
)
def test_features_that_are_not_meant_for_certain_stay(store: Path, start: str, message: str, refused: Refused) -> None:
    """Other sets named in the same command stay, too."""
    assert refused("cache", "--store", store, "--remove", "fff3", "--remove", start) == message
    assert len(list((store / "features").iterdir())) == 3


def test_features_of_another_user(store: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(entry: stores.Entry) -> NoReturn:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(stores, "remove", deny)
    message = refused("cache", "--store", store, "--remove", "abc")
    assert message == f"{store}/features/abc1.safetensors: cannot be removed (Permission denied); ask whose it is"


@pytest.mark.parametrize(
    ("days", "kept"), [(6, ["fff3", "abc1", "abd2"]), (5, ["fff3", "abc1"]), (0.1, ["fff3", "abc1"]), (0, ["fff3"])]
)
def test_what_is_not_used_goes(store: Path, days: float, kept: list[str], invoke: Invoke) -> None:
    """A set that may still be computed stays, although every set is older than 0 days."""
    assert keys(invoke, store, "--unused-days", days) == kept
    assert keys(invoke, store) == kept


def test_nothing_to_remove_is_said(store: Path) -> None:
    last = wide("cache", "--store", store, "--unused-days", "6").stdout.splitlines()[-1]
    assert last == "removed nothing: all of it was used in the last 6 days"


@pytest.mark.parametrize(("minutes", "gone"), [(55, False), (65, True)])
def test_blocks_of_a_job_that_died_go_after_an_hour(store: Path, minutes: float, gone: bool, invoke: Invoke) -> None:
    age(next((store / "features").glob("fff3.*.blocks")), minutes / 1440)
    assert ("fff3" not in keys(invoke, store, "--unused-days", "0")) == gone


def test_old_blocks_stay_as_long_as_was_asked(store: Path, invoke: Invoke) -> None:
    age(next((store / "features").glob("fff3.*.blocks")), 0.5)
    assert "fff3" in keys(invoke, store, "--unused-days", "1")


def test_one_wrong_bit_is_found_by_a_check(store: Path, invoke: Invoke) -> None:
    path = store / "features" / "abd2.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    output = json.loads(invoke("data", "cache", "--store", store, "--check", "--json"))["features"]
    assert {row["key"]: row["state"] for row in output} == {"fff3": "unfinished", "abc1": "sound", "abd2": "DAMAGED: remove it"}
    assert "DAMAGED" not in wide("cache", "--store", store).stdout, "not looked for unless asked"
    assert cells(wide("cache", "--store", store, "--check").stdout.splitlines()[4])[-1] == "DAMAGED: remove it"


def test_a_file_that_was_cut_is_listed_and_can_go(store: Path, invoke: Invoke) -> None:
    path = store / "features" / "abc1.safetensors"
    path.write_bytes(path.read_bytes()[:9])
    (row,) = [
        row for row in json.loads(invoke("data", "cache", "--store", store, "--check", "--json"))["features"] if row["bytes"] == 9
    ]
    assert (row["key"], row["state"], row["images"]) == ("abc1", "DAMAGED: remove it", 0)
    assert keys(invoke, store, "--remove", "abc1") == ["fff3", "abd2"]


def test_an_empty_store(tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --store, the store is the folder $FLORA_HPC_CACHE."""
    monkeypatch.setenv("FLORA_HPC_CACHE", str(tmp_path))
    output = json.loads(invoke("data", "cache", "--json"))
    assert output == {"store": str(tmp_path), "removed": [], "freed_bytes": 0, "features": []}
    assert "nothing is kept here" in wide("cache").stdout


def test_a_store_of_none(refused: Refused) -> None:
    assert refused("cache", "--store", "none") == "--store: none keeps nothing; give a folder"


def test_a_store_that_is_a_file(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert refused("cache", "--store", tmp_path / "file") == f"--store: there is no folder {tmp_path}/file"
    assert refused("cache", "--store", tmp_path / "typo") == f"--store: there is no folder {tmp_path}/typo"
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cache", "--unused-days", "-1"], "Invalid value for '--unused-days'"),
        (["cache", "--remove"], "Option '--remove' requires an argument"),
        (["cash"], "No such command 'cash'. Did you mean 'cache'?"),
        (["inspect"], "inspect: which configuration? for example quickstart, or a YAML file"),
        (["fetch"], "Missing argument 'NAME'"),
    ],
)
def test_mistakes_on_the_command_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, error = call(["data", *arguments], monkeypatch, capsys)
    assert (code, error.count(message), "Traceback" in error) == (2, 1, False), error


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "just now"),
        (59.9, "just now"),
        (90, "1 min ago"),
        (3599, "59 min ago"),
        (7200, "2 h ago"),
        (86399, "23 h ago"),
        (3 * DAY, "3 days ago"),
    ],
)
def test_how_long_ago(seconds: float, text: str) -> None:
    assert _cache.ago(seconds) == text
