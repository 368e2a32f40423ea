"""Whole runs on data of every kind: damaged images, pairs, folders, every split, clients tested on their own."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from flora_hpc import loop, plugins
from flora_hpc.errors import UserError
from flora_hpc.records import hdf5file
from tests.conftest import ROOT
from tests.data.made_images import write_clients

Invoke = Callable[..., str]
QUICK = ["-s", "rounds=1", "-s", "partition.num_clients=4"]


def encoded(shade: int, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (12, 12), (shade, 255 - shade, 90)).save(stream, form)
    return stream.getvalue()


def run(invoke: Invoke, out: Path, *overrides: str) -> tuple[dict[str, Any], dict[str, Any]]:
    settings = [word for override in overrides for word in ("-s", override)]
    invoke("run", ROOT / "configs/quickstart.yaml", *QUICK, *settings, "--out", out)
    return hdf5file.read(out)


# --- damage


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Twenty training and ten test images of two classes; training image 3 is cut, 5 is no image, test image 2 is empty."""
    path = tmp_path / "pictures.h5"
    with h5py.File(path, "w") as file:
        for part, count in (("train", 20), ("test", 10)):
            images = [encoded(10 * i) for i in range(count)]
            if part == "train":
                images[3], images[5] = images[3][:50], b"not an image"
            else:
                images[2] = b""
            rows = file.create_dataset(f"{part}/images", (count,), h5py.vlen_dtype(np.uint8))
            for i, image in enumerate(images):
                rows[i] = np.frombuffer(image, np.uint8)
            file[f"{part}/labels"] = np.arange(count) % 2
        file.attrs.update(class_names=json.dumps(["dark", "bright"]), encoding="png")
    return path


@pytest.mark.parametrize("targets", ["text.out_proj", "image.out_proj"], ids=["features", "pixels"])
def test_damaged_images_are_named_before_the_first_round(invoke: Invoke, damaged: Path, tmp_path: Path, targets: str) -> None:
    data = ["data.name=hdf5", f"data.path={damaged}", f"method.targets=[{targets}]"]
    for _ in range(2):  # the second time it is known from the store
        with pytest.raises(UserError) as caught:
            run(invoke, tmp_path / "out", *data)
        assert str(caught.value).startswith("data: 3 of 30 images cannot be decoded (")
        for name in ("train/images[3]: ", "train/images[5]: it is no image", "test/images[2]: it is empty"):
            assert f"{damaged}: {name}" in str(caught.value)
        assert "set data.damaged: skip to leave them out" in str(caught.value)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("targets", ["text.out_proj", "image.out_proj"], ids=["features", "pixels"])
@pytest.mark.parametrize("store", ["auto", "none"])
def test_damaged_images_are_left_out_if_asked(invoke: Invoke, damaged: Path, tmp_path: Path, targets: str, store: str) -> None:
    data = ["data.name=hdf5", f"data.path={damaged}", f"method.targets=[{targets}]", "data.damaged=skip", f"features.store={store}"]
    attributes, tables = run(invoke, tmp_path / "out", *data)
    assert attributes["num_damaged"] == 3
    assert tables["rounds"]["num_examples"].tolist() == [0, 18]
    assert not np.isnan(tables["rounds"]["train_loss"][1])
    assert np.allclose(tables["rounds"]["test_accuracy"] * 9, np.round(tables["rounds"]["test_accuracy"] * 9))
    told = invoke("evaluate", tmp_path / "out", "--json")
    assert json.loads(told)["num_images"] == 9
    assert json.loads(told)["accuracy"] == pytest.approx(tables["rounds"]["test_accuracy"][-1])


def test_nothing_is_left(invoke: Invoke, damaged: Path, tmp_path: Path) -> None:
    with h5py.File(damaged, "r+") as file:
        for i in range(10):
            file["test/images"][i] = np.zeros(0, np.uint8)
    with pytest.raises(UserError, match="12 of 30 images cannot be decoded; too few are left"):
        run(invoke, tmp_path / "out", "data.name=hdf5", f"data.path={damaged}", "data.damaged=skip")


# --- folders and pairs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of shades, drawn by three people each."""
    for name, shades in (("dark", (10, 20, 30, 40, 50, 60)), ("bright", (200, 210, 220, 230, 240, 250))):
        for number, shade in enumerate(shades):
            path = tmp_path / "shades" / name / f"person{number % 3}" / f"{shade}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(shade))
    return tmp_path / "shades"


def test_a_folder_split_by_who_drew_it(invoke: Invoke, folder: Path, tmp_path: Path) -> None:
    data = ["data.name=imagefolder", f"data.path={folder}", "partition.name=natural", "partition.column=folder"]
    _, tables = run(invoke, tmp_path / "out", *data, "partition.num_clients=3")
    assert tables["rounds"]["num_examples"][1] == 10, "one of six of each class is kept for testing"
    assert len(tables["clients"]) == 3


def write_pairs(folder: Path, path: Path) -> None:
    """Every picture has a caption of its own."""
    lines = [
        f"{file.relative_to(path.parent)},a {file.parent.parent.name} shade of {file.stem}"
        for file in sorted(folder.rglob("*.png"))
    ]
    path.write_text("\n".join(["image,caption", *lines]))


def test_pairs_train_contrastively_and_are_tested_by_retrieval(invoke: Invoke, folder: Path, tmp_path: Path) -> None:
    write_pairs(folder, tmp_path / "pairs.csv")
    data = ["data.name=pairs", f"data.path={tmp_path / 'pairs.csv'}", "data.test_fraction=0.34", "client.loss=contrastive"]
    attributes, tables = run(invoke, tmp_path / "out", *data, "rounds=20", "partition.num_clients=2", "client.lr=1e-3")
    assert "the captions of a batch" in attributes["how"]
    losses = tables["rounds"]["train_loss"]
    assert losses[-1] < losses[1] - 0.1
    assert set(np.round(tables["rounds"]["test_accuracy"] * 4, 6)) <= {0, 1, 2, 3, 4}


@pytest.mark.mpi
def test_pairs_give_the_same_bits_on_two_ranks(
    flora: Callable[..., CompletedProcess[str]], mpiexec: list[str], folder: Path, tmp_path: Path
) -> None:
    write_pairs(folder, tmp_path / "pairs.csv")
    data = ["-s", "data.name=pairs", "-s", f"data.path={tmp_path / 'pairs.csv'}", "-s", "client.loss=contrastive"]
    adapters = []
    for under in (None, [*mpiexec, "-n", "2"]):
        out = tmp_path / f"out{len(adapters)}"
        result = flora("run", "configs/quickstart.yaml", *QUICK, *data, "--out", out, under=under)
        assert result.returncode == 0, result.stderr
        adapters.append((out / "adapter/adapter_model.safetensors").read_bytes())
    assert adapters[0] == adapters[1]


# --- splits

SPLITS = {
    "iid": [],
    "dirichlet": ["partition.beta=0.1"],
    "pathological": ["partition.classes_per_client=5"],
    "fewshot": ["partition.shots=2"],
    "fewshot_pathological": ["partition.shots=2", "partition.classes_per_client=3"],
    "quantity": ["partition.beta=0.5"],
}


def test_every_partitioner_is_played() -> None:
    assert {*SPLITS, "natural", "file"} == set(plugins.members("partitioners"))


@pytest.mark.parametrize("name", SPLITS)
def test_every_split_runs(invoke: Invoke, tmp_path: Path, name: str) -> None:
    _, tables = run(invoke, tmp_path / "out", f"partition.name={name}", *SPLITS[name])
    examples = {"fewshot": 4 * 10 * 2, "fewshot_pathological": 4 * 3 * 2}.get(name, 1438)
    assert tables["rounds"]["num_examples"][1] == examples


@pytest.mark.parametrize("name", SPLITS)
def test_every_population_runs(invoke: Invoke, tmp_path: Path, name: str) -> None:
    options = [option for option in SPLITS[name] if "shots" not in option]
    population = ["partition.num_clients=1000000", "partition.examples_per_client=20", "cohort.size=5"]
    _, tables = run(invoke, tmp_path / "out", f"partition.name={name}", *options, *population)
    assert len(tables["clients"]) == 5
    assert name == "quantity" or tables["clients"]["num_examples"].tolist() == [20] * 5


def test_an_exported_split_is_the_same_run(invoke: Invoke, tmp_path: Path) -> None:
    table, split = tmp_path / "clients.csv", ["partition={name: pathological, num_clients: 4, classes_per_client: 3}"]
    chosen = [word for setting in split for word in ("-s", setting)]
    invoke("data", "inspect", ROOT / "configs/quickstart.yaml", *chosen, "--rows", table)
    run(invoke, tmp_path / "one", *split)
    attributes, tables = run(invoke, tmp_path / "two", f"partition={{name: file, path: {table}}}", "cohort.size=4")
    adapters = [(tmp_path / name / "adapter/adapter_model.safetensors").read_bytes() for name in ("one", "two")]
    assert adapters[0] == adapters[1]
    assert (attributes["num_clients"], len(tables["clients"]), attributes["warnings"]) == (4, 4, "[]")
    table.unlink()
    assert json.loads(invoke("evaluate", tmp_path / "two", "--json"))["num_images"] == 359


def test_images_that_a_file_gives_to_nobody_are_told(invoke: Invoke, folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "clients.csv"
    data = [f"data={{name: imagefolder, path: {folder}}}", f"partition={{name: file, path: {table}}}"]
    settings = [word for setting in data for word in ("-s", setting)]
    iid = ["-s", data[0], "-s", "partition={name: iid, num_clients: 2}"]
    invoke("data", "inspect", ROOT / "configs/quickstart.yaml", *iid, "--rows", table)
    lines = [line.split(",") for line in table.read_text().splitlines()]
    named = [f"{('anna', 'ben')[int(line[0])]},{line[5]}" for line in lines[1:] if line[2] == "train"]
    table.write_text("\n".join(["client,image", *named[:-1]]))
    sentence = f"1 of 10 training images belong to no client of {table}, so nobody trains on them: none of them is in it"
    attributes, tables = run(invoke, tmp_path / "out", *data, "partition.num_clients=2")
    assert json.loads(attributes["warnings"]).count(sentence) == 1
    assert tables["rounds"]["num_examples"][1] == 9
    for command in (["plan"], ["data", "inspect"]):
        assert f"warning: {sentence}\n" in invoke(
            *command, ROOT / "configs/quickstart.yaml", *settings, "-s", "partition.num_clients=2"
        )
    told = json.loads(invoke("data", "inspect", ROOT / "configs/quickstart.yaml", *settings, "--json"))
    assert (told["warnings"].count(sentence), told["num_nobodys"], told["partition"]) == (1, 1, f"file, path {table}")
    with pytest.raises(UserError, match=r"cohort\.size: 3 clients a round, but only 2 are registered; lower cohort\.size$"):
        invoke("plan", ROOT / "configs/quickstart.yaml", *settings, "-s", "cohort.size=3")


def test_a_file_may_name_images_that_cannot_be_decoded(invoke: Invoke, damaged: Path, tmp_path: Path) -> None:
    table = write_clients(tmp_path / "clients.csv", np.arange(20) % 4)
    data = [f"data={{name: hdf5, path: {damaged}, damaged: skip}}", f"partition={{name: file, path: {table}}}"]
    attributes, tables = run(invoke, tmp_path / "out", *data)
    assert (attributes["num_damaged"], tables["rounds"]["num_examples"][1]) == (3, 18)
    assert "belong to no client" not in attributes["warnings"]


def test_the_papers_split_draws_its_test_images_from_all(invoke: Invoke, squares: Path, tmp_path: Path) -> None:
    data = ["data.name=hdf5", f"data.path={squares}", "data.split=merged", "data.test_fraction=0.5", "partition.num_clients=2"]
    _, tables = run(invoke, tmp_path / "out", *data)
    assert tables["rounds"]["num_examples"][1] == 10, "of two images of each of ten classes one is kept for testing"


# --- clients tested on their own


def test_clients_are_tested_on_their_own_mix_of_classes(invoke: Invoke, tmp_path: Path) -> None:
    split = ["partition.name=pathological", "partition.classes_per_client=5", "evaluate.per_client=true"]
    _, tables = run(invoke, tmp_path / "out", *split)
    for row in tables["rounds"]:
        assert 0 < row["client_accuracy_min"] < row["client_accuracy_mean"] < 1
        assert row["client_accuracy_std"] > 0
        assert row["worst_client"] in range(4)
    assert "clients' accuracy" in invoke("show", tmp_path / "out")


def test_a_client_that_holds_everything_is_as_good_as_the_test(invoke: Invoke, tmp_path: Path) -> None:
    """Its mix is that of the test images, up to the rounding of a fifth of each class."""
    _, tables = run(invoke, tmp_path / "out", "partition.name=iid", "partition.num_clients=1", "evaluate.per_client=true")
    np.testing.assert_allclose(tables["rounds"]["client_accuracy_mean"], tables["rounds"]["test_accuracy"], atol=1e-3)
    assert tables["rounds"]["worst_client"].tolist() == [0, 0]


def test_pairs_have_no_mix_of_classes(invoke: Invoke, folder: Path, tmp_path: Path) -> None:
    write_pairs(folder, tmp_path / "pairs.csv")
    data = ["data.name=pairs", f"data.path={tmp_path / 'pairs.csv'}", "evaluate.per_client=true", "partition.num_clients=2"]
    with pytest.raises(UserError, match=r"evaluate\.per_client: tests clients on their mix of classes, but pairs have none"):
        run(invoke, tmp_path / "out", *data)


def test_evaluate_uses_the_features_of_the_run(invoke: Invoke, folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    data = ["data.name=imagefolder", f"data.path={folder}", "partition.num_clients=2", f"features.store={store}"]
    _, tables = run(invoke, tmp_path / "out", *data)
    told = json.loads(invoke("evaluate", tmp_path / "out", "--json"))
    assert told["accuracy"] == pytest.approx(tables["rounds"]["test_accuracy"][-1])
    assert len(list(store.glob("features/*"))) == 1
    invoke("evaluate", tmp_path / "out", "--data", folder.parent / "shades")
    assert len(list(store.glob("features/*"))) == 1, "the same folder by another way"


# --- what is written down


def test_the_size_of_groups_is_written_down_and_stays_open_in_the_configuration(invoke: Invoke, tmp_path: Path) -> None:
    facts, _ = run(invoke, tmp_path / "run")
    assert facts["group_size"] > 1
    assert "group_size: null" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_round_that_was_not_tested_yet_is_kept_when_the_run_fails(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.play

    def play(setup: Any, site: Any, state: Any, number: int) -> Any:
        if number == 2:
            raise RuntimeError("a lost node")
        return real(setup, site, state, number)

    monkeypatch.setattr(loop, "play", play)
    with pytest.raises(RuntimeError, match="a lost node"):
        run(invoke, tmp_path / "run", "rounds=3", "evaluate.overlap=true")
    facts, tables = hdf5file.read(tmp_path / "run")
    assert facts["status"] == "failed"
    assert tables["rounds"]["round"].tolist() == [0, 1]
    assert np.isnan(tables["rounds"]["test_accuracy"]).tolist() == [False, True]
    assert len(tables["clients"]) == 4


# --- what a user must know of a folder


def test_a_run_notes_what_was_left_out_and_that_pictures_show_nothing(invoke: Invoke, tmp_path: Path) -> None:
    for name, shade in (("dark", 30), ("bright", 200)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (12, 12), (shade + i, 90, 90)).save(tmp_path / "images" / name / f"{i}.gif")
    (tmp_path / "images" / "dark" / "list").write_text("0.gif")
    (tmp_path / "images" / "dark" / "all").symlink_to("..")
    attributes, _ = run(invoke, tmp_path / "out", "data.name=imagefolder", f"data.path={tmp_path / 'images'}", "partition.name=iid")
    assert json.loads(attributes["left_out"]) == {
        "another way to a file or folder that is there already, such as dark/all": 1,
        "no image, by its first bytes, such as dark/list": 1,
    }
    (warning,) = [sentence for sentence in json.loads(attributes["warnings"]) if "show hardly anything" in sentence]
    assert warning.startswith("12 of 12 images looked at show hardly anything, ")


# --- validation images


def test_a_run_with_validation_images_shows_their_accuracy(invoke: Invoke, tmp_path: Path) -> None:
    """No client holds them, and the test images are those of a run without them."""
    plain, _ = run(invoke, tmp_path / "plain")
    out = invoke("run", ROOT / "configs/quickstart.yaml", *QUICK, "-s", "data.validation_fraction=0.25", "--out", tmp_path / "run")
    facts, tables = hdf5file.read(tmp_path / "run")
    accuracy = tables["rounds"]["validation_accuracy"]
    assert np.allclose(accuracy * 359, np.round(accuracy * 359))  # of 1,438 training images, by class
    assert 0.5 < accuracy[-1] <= 1
    assert tables["clients"]["num_examples"].sum() == 1438 - 359
    assert f"| validation {accuracy[1]:.4f} | " in out
    assert f"validation accuracy  {accuracy[0]:.4f} → {accuracy[1]:.4f}  (best " in invoke("show", tmp_path / "run")
    digests = [json.loads(attributes["identity"])["split"] for attributes in (plain, facts)]
    assert digests[0] != digests[1]
    page = tmp_path / "page.html"
    invoke("report", tmp_path / "run", "--out", page)
    assert "validation images" in page.read_text()
    invoke("report", tmp_path / "run", tmp_path / "plain", "--out", tmp_path / "two.html")
    assert "validation" in (tmp_path / "two.html").read_text()


def test_a_split_from_a_file_leaves_validation_images_out(invoke: Invoke, tmp_path: Path) -> None:
    """The file was written without them; written with them, it gives the same run."""
    few, half = ["-s", "partition.num_clients=4"], ["-s", "data.validation_fraction=0.5"]
    for name, settings in {"all": few, "half": [*few, *half]}.items():
        invoke("data", "inspect", ROOT / "configs/quickstart.yaml", *settings, "--rows", tmp_path / f"{name}.csv")
        own = f"partition={{name: file, path: {tmp_path / name}.csv}}"
        invoke("run", ROOT / "configs/quickstart.yaml", "-s", "rounds=1", *half, "-s", own, "--out", tmp_path / name)
    invoke("run", ROOT / "configs/quickstart.yaml", "-s", "rounds=1", *few, *half, "--out", tmp_path / "drawn")
    found = {name: hdf5file.read(tmp_path / name)[1] for name in ("all", "half", "drawn")}
    assert {tables["clients"]["num_examples"].sum() for tables in found.values()} == {719}
    assert found["half"]["rounds"]["train_loss"].tolist() == pytest.approx(
        found["drawn"]["rounds"]["train_loss"], nan_ok=True, abs=0
    )
    assert json.loads(invoke("data", "inspect", ROOT / "configs/quickstart.yaml", *half, "--json"))["num_validation"] == 719


def test_a_validation_part_that_cannot_be_is_refused(invoke: Invoke, tmp_path: Path) -> None:
    for fraction in ("1", "-0.1", "half"):
        with pytest.raises(UserError, match=r"data\.validation_fraction"):
            run(invoke, tmp_path / "run", f"data.validation_fraction={fraction}")
    with pytest.raises(UserError, match=r"partition\.num_clients: 100 clients for 10 training examples leaves some without any"):
        run(invoke, tmp_path / "run", "data.validation_fraction=0.999", "partition.num_clients=100")
