import json
import tempfile
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from flora_hpc.bench import features as part
from flora_hpc.cli import app
from flora_hpc.data import decode
from flora_hpc.errors import UserError

SMALL = ["--model", "flora-tiny", "--images", "300", "--side", "40", "--repeats", "1"]
WORK = ("decode", "tower", "store")


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", "features", *arguments], env={"COLUMNS": "80"})


def refusal(*arguments: str) -> str:
    error = bench(*arguments).exception
    assert isinstance(error, UserError)
    return str(error)


@pytest.mark.parametrize("encoding", ["jpeg", "png"])
def test_images_are_embedded_kept_and_read_back(encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = bench(*SMALL, "--encoding", encoding, "--json")
    assert result.exit_code == 0, result.exception
    found = json.loads(result.stdout)
    assert (found["model"], found["num_images"], found["encoding"], found["embed_dim"]) == ("flora-tiny", 300, encoding, 128)
    seconds = found["seconds"]
    assert seconds.keys() == {*WORK, "whole", "again", "read"}
    assert min(seconds.values()) > 0
    assert found["images_per_second"] == {name: pytest.approx(300 / value) for name, value in seconds.items()}
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert found["shares"]["tower"] == pytest.approx(seconds["tower"] / sum(seconds[name] for name in WORK))
    assert found["repeat_seconds"] == [seconds["whole"]]
    if found["bf16"] is not None:
        assert found["bf16"]["speedup"] == pytest.approx(seconds["tower"] / found["bf16"]["seconds"])
        assert 1e-4 < found["bf16"]["error"] < 0.05
    sizes = found["store_bytes"]
    for name, width in {"fp32": 4, "bf16": 2}.items():
        assert 0 < sizes[name] - 300 * 128 * width < 2000, "a header and the numbers"
    assert {"device", "processor", "num_threads", "versions", "encoded_bytes", "side"} <= found.keys()
    assert [*tmp_path.iterdir()] == []


def test_numbers_are_medians_of_the_repeats() -> None:
    found = part.summary([part.Parts(4, 1, 3, 1, 0.5, 0.25), part.Parts(8, 1, 5, 3, 0.5, 0.25), part.Parts(5, 1, 4, 0, 1, 1)], 10)
    assert found["seconds"] == {"whole": 5, "decode": 1, "tower": 4, "store": 1, "again": 0.5, "read": 0.25}
    assert found["images_per_second"]["whole"] == 2
    assert found["shares"] == {"decode": 1 / 6, "tower": 4 / 6, "store": 1 / 6}
    assert found["repeat_seconds"] == [4, 8, 5]


def test_pictures_differ_and_can_be_decoded() -> None:
    task = part.Task("flora-tiny", 100, 20, "jpeg", 1, "cpu")
    pictures = part.make_pictures(task)
    assert len(set(pictures)) == part.DISTINCT
    images = part.as_dataset(pictures, 100)
    assert len(images) == 100
    assert images.raw([0, 99]) == [pictures[0], pictures[99 % part.DISTINCT]]
    assert all(not isinstance(image, decode.DamagedError) and image.size == (20, 20) for image in decode.decode(images, [0, 99]))
    assert part.encoded(3, 20, "png") == part.encoded(3, 20, "png")


def test_the_table_for_people() -> None:
    result = bench("--model", "flora-tiny", "--images", "3", "--side", "8", "--repeats", "1", "--encoding", "png")
    assert result.exit_code == 0, result.exception
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("flora-tiny, 3 png images of 8 x 8 pixels")
    text = " ".join(result.stdout.split())
    assert "128 numbers an image" in text
    shares = [float(line.split()[-1].rstrip("%")) for line in lines if line.strip().endswith("%")]
    assert len(shares) == 3
    assert sum(shares) == pytest.approx(100, abs=0.2)


def test_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "--model: no model 'ViT-B-3'; did you mean 'ViT-B-32'?" in refusal("--model", "ViT-B-3")
    assert refusal("--device", "cuda").endswith("take --device auto or cpu")
    for option in ("--images", "--side", "--repeats"):
        assert bench(option, "0").exit_code == 2
    assert bench("--encoding", "gif").exit_code == 2
