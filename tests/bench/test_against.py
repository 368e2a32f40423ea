import json

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from flora_hpc.bench import against as part
from flora_hpc.bench import plain
from flora_hpc.cli import app
from flora_hpc.errors import UserError
from tests.conftest import small_model

SMALL = ["-s", "partition.num_clients=3", "--rounds", "2"]


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", "against", *arguments], env={"COLUMNS": "80"})


@pytest.mark.parametrize(
    "special",
    [
        pytest.param([], marks=pytest.mark.long),
        ["client.loss=contrastive", "method.targets=[text.q_proj, text.mlp]", "client.weight_decay=0.1"],
    ],
)
def test_both_sides_compute_the_same(special: list[str]) -> None:
    """Updates of a whole round, of clients of different sizes, are apart by rounding alone."""
    result = bench(*SMALL, *(word for setting in special for word in ("-s", setting)), "--json")
    assert result.exit_code == 0, result.exception
    found = json.loads(result.stdout)
    assert found["update_difference"] < 1e-3
    assert found["ratio"] == found["round_seconds"]["plain"] / found["round_seconds"]["ours"]
    assert (found["num_clients"], found["num_rounds"], found["caption_length"]) == (3, 1, 9)
    assert {"first_step", "processor", "versions", "num_threads", "device"} <= found.keys()
    assert result.stderr.splitlines() == ["round 1 of 2", "round 2 of 2"]


@pytest.mark.long
def test_the_table_for_people() -> None:
    result = bench(*SMALL)
    assert result.exit_code == 0, result.exception
    lines = result.stdout.splitlines()
    assert lines[0] == "flora-tiny, flora, 3 clients a round"
    text = " ".join(result.stdout.split())
    assert "times as fast" in text
    assert "captions cut to 9 tokens" in text


def test_medians_leave_out_the_first_round() -> None:
    found = part.compare({"ours": [9, 1, 2, 3], "plain": [90, 10, 20, 30]})
    assert found == {"round_seconds": {"ours": 2, "plain": 20}, "ratio": 10, "num_rounds": 3}


def test_captions_that_are_cut_have_the_features_of_whole_ones(captions: torch.Tensor) -> None:
    model = small_model(dtype=torch.float64)
    length = int(captions.argmax(1).max()) + 1
    assert length < captions.shape[1]
    torch.testing.assert_close(plain.encode_cut(model, captions[:, :length]), model.encode_text(captions, normalize=True))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("method.name=fedca", "trains flora on layers of the text tower, not fedca"),
        ("method.targets=[image.q_proj]", "trains flora on layers of the text tower"),
        ("method.dropout=0.1", "has no dropout"),
        ("client.optimizer_state=keep", "starts optimizers afresh"),
    ],
)
def test_what_the_plain_loop_lacks_is_refused(setting: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(app, ["bench", "against", "-s", setting], catch_exceptions=False)
