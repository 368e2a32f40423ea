"""What runs with new factors, three factors and merged weights leave is what other programs load, with the accuracy of the run."""

import warnings
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np
import open_clip
import peft
import pytest
import torch
import transformers

from flora_hpc.clip import adapters
from flora_hpc.clip.attention import unfuse
from flora_hpc.clip.lora import join
from flora_hpc.data.datasets import digits
from flora_hpc.data.decode import rgb
from flora_hpc.records import hdf5file
from flora_hpc.records.opened import open_run
from flora_hpc.report.columns import headlines
from tests.conftest import ROOT

Invoke = Callable[..., str]
RUNS = {
    "flexlora": [],
    "fedex_lora": [],
    "flora_stacking": [],
    "fed_sb": ["method={name: fed_sb, rank: 16}", "client.lr=0.01"],
    "both": ["algorithm=fedex_lora", "method.name=dual_lora", "evaluate.cross_term=true"],
}
DATA = digits.build(digits.Options(name="digits"))
LABELS = DATA.images.labels[DATA.test]
FOLDER = f"local-dir:{files('flora_hpc.clip.flora_tiny')}"


@pytest.fixture(scope="module", params=RUNS)
def run(request: pytest.FixtureRequest, flora: Callable[..., object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp(request.param) / "run"
    options = RUNS[request.param] or [f"algorithm={request.param}"]
    flora(
        "run", "configs/quickstart.yaml", *(text for option in options for text in ("-s", option)), "-s", "rounds=3", "--out", out
    )
    return out


def accuracies(run: Path) -> list[float]:
    values: list[float] = hdf5file.read(run)[1]["rounds"]["test_accuracy"].tolist()
    return values


def accuracy(scores: torch.Tensor) -> float:
    return float(np.mean(scores.argmax(1).numpy() == LABELS))


def near(run: Path) -> object:
    return pytest.approx(accuracies(run)[-1], abs=1.5 / len(LABELS))


def test_the_run_learned(run: Path) -> None:
    assert accuracies(run)[-1] > accuracies(run)[0] + 0.02


def test_the_command_gives_the_runs_accuracy(run: Path, invoke: Invoke) -> None:
    assert f"{accuracies(run)[-1]:.4f}" in invoke("evaluate", run)


def test_peft_loads_the_adapter(run: Path) -> None:
    """On the model as it was before the run, without code of ours but the split."""
    model, _, preprocess = open_clip.create_model_and_transforms(FOLDER)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.PeftModel.from_pretrained(unfuse(model.eval()), str(run / "adapter")).base_model.model
    with torch.inference_mode():
        pixels = torch.stack([preprocess(rgb(image)) for image in DATA.images.raw(DATA.test.tolist())])
        text = adapted.encode_text(open_clip.get_tokenizer(FOLDER)(list(DATA.captions)), normalize=True)
        assert accuracy(adapted.encode_image(pixels, normalize=True) @ text.T) == near(run)


def test_transformers_loads_the_merged_export(run: Path, invoke: Invoke, tmp_path: Path) -> None:
    invoke("export", run, "--to", "transformers", "--merged", "--out", tmp_path / "clip")
    model = transformers.CLIPModel.from_pretrained(str(tmp_path / "clip"))
    processor = transformers.CLIPProcessor.from_pretrained(str(tmp_path / "clip"), backend="pil")
    images = [rgb(image) for image in DATA.images.raw(DATA.test.tolist())]
    inputs = processor(images=images, text=list(DATA.captions), return_tensors="pt", padding=True, truncation=True)
    with torch.inference_mode():
        assert accuracy(model(**inputs).logits_per_image) == near(run)


def test_the_cross_term_is_shown_where_it_was_measured(run: Path, invoke: Invoke) -> None:
    measured = "both" in str(run)
    assert ("cross term" in invoke("show", run)) == measured
    assert ("cross term" in invoke("show", run, "--rounds")) == measured
    lines = {name: (value, remark) for name, value, remark in headlines(open_run(run))}
    assert ("cross term" in lines) == measured
    if measured:
        terms = hdf5file.read(run)[1]["rounds"]["cross_term"]
        assert np.isnan(terms[0])
        assert lines["cross term"][0] == f"{terms[-1]:.3g}"
        assert lines["cross term"][1].endswith(f"largest {terms[1:].max():.3g} in round {1 + terms[1:].argmax()}")


def test_one_adapter_of_the_sum_has_the_rank_of_the_sum() -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    tensors = {"a.lora_A": normal(2, 6), "a.lora_B": normal(5, 2), "b.lora_A": normal(2, 6), "b.lora_B": normal(7, 2)}
    merged = {"a.lora_A": normal(5, 1) @ normal(1, 6), "b.lora_A": torch.zeros(7, 6)}
    whole = adapters.with_merged(tensors, merged)
    assert {name: tuple(tensor.shape) for name, tensor in whole.items()} == {
        "a.lora_A": (3, 6),
        "a.lora_B": (5, 3),
        "b.lora_A": (3, 6),
        "b.lora_B": (7, 3),
    }
    for path in "ab":
        expected = tensors[f"{path}.lora_B"] @ tensors[f"{path}.lora_A"] + merged[f"{path}.lora_A"]
        torch.testing.assert_close(whole[f"{path}.lora_B"] @ whole[f"{path}.lora_A"], expected, rtol=1e-4, atol=1e-5)
    assert adapters.with_merged(tensors, {}) is tensors
    assert join(whole) == whole


@pytest.mark.parametrize(
    ("num_clients", "sent", "merged"),
    [
        (10, "to the rank that computes the mean of B A of the layer", "factors of rank 9 times the adapter's"),
        (100, "for B A of each layer", "whole matrices"),
    ],
)
def test_a_plan_says_in_which_form_products_are_summed_and_merged_weights_go_down(
    num_clients: int, sent: str, merged: str, invoke: Invoke
) -> None:
    """Factors of few clients are smaller than exact sums of their products, and those of many are larger."""
    plan = ["plan", ROOT / "configs" / "quickstart.yaml", "--ranks", "2"]
    changes = ["algorithm=fedex_lora", "evaluate.cross_term=true", f"partition.num_clients={num_clients}"]
    told = invoke(*plan, *(word for change in changes for word in ("-s", change)))
    words = " ".join(told.replace("│", " ").split())
    assert f"from round 2 on also the change of merged weights, as {merged}" in words
    assert sent in words
