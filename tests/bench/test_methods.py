import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file
from typer.testing import CliRunner

from flora_hpc import groupsize
from flora_hpc.bench import methods, workload
from flora_hpc.cli._bench_methods import times
from flora_hpc.cli.bench import app
from flora_hpc.clip.load import load
from flora_hpc.errors import UserError
from tests.conftest import small_model

TINY = ["--model", "flora-tiny", "--classes", "3", "--batch-size", "4", "--clients", "2", "--steps", "1", "--repeats", "1"]
SLOW = methods.Measured(1000, 4000, "pixels", 1, 2.0, [4.0], 15_000_000_000, 800_000_000, "cpu", 2)
FAST = methods.Measured(10, 40, "features", 32, 0.004, [0.2, 0.256, 0.4], 2_000_000_000, 800_000_000, "cpu", 2)
TASK = methods.Task("flora", "flora-tiny", 3, 4, 2, 1, 1, "cpu")


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["methods", *arguments], env={"COLUMNS": "80"})


def refusal(*arguments: str) -> str:
    error = bench(*arguments).exception
    assert isinstance(error, UserError)
    return str(error)


@pytest.mark.long
def test_two_methods_are_measured_in_processes_of_their_own() -> None:
    result = bench(*TINY, "--device", "cpu", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    flora, fedfft = found["methods"]["flora"], found["methods"]["fedfft"]
    model = load(methods.model_config("flora-tiny"), 0, torch.device("meta")).model
    assert fedfft["num_params"] == sum(p.numel() for p in model.parameters())
    assert (flora["sees"], fedfft["sees"]) == ("features", "pixels")
    for one in (flora, fedfft):
        assert one["payload_bytes"] == 4 * one["num_params"]
        assert one["clients_at_once"] == 2
        assert one["seconds_per_client_step"] == one["repeat_seconds"][0] / 2 > 0
        assert one["peak_memory_bytes"] > one["resident_before_bytes"] > 0
    assert found["against"] == "fedfft"
    assert found["ratios"] == {
        "flora": {
            "time": fedfft["seconds_per_client_step"] / flora["seconds_per_client_step"],
            "memory": fedfft["peak_memory_bytes"] / flora["peak_memory_bytes"],
            "memory_above_libraries": (fedfft["peak_memory_bytes"] - fedfft["resident_before_bytes"])
            / (flora["peak_memory_bytes"] - flora["resident_before_bytes"]),
        }
    }
    assert (found["device"], found["precision"]) == ("cpu", "fp32")
    assert [line.split()[1] for line in result.stderr.splitlines()] == ["flora", "fedfft"]


def test_the_table_and_the_ratios_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = []

    def measured(task: methods.Task) -> methods.Measured:
        tasks.append(task)
        return FAST if task.method == "flora" else SLOW

    monkeypatch.setattr(methods, "measure_alone", measured)
    result = bench(*TINY)
    assert result.exit_code == 0, result.exception
    assert tasks[0] == methods.Task("flora", "flora-tiny", 3, 4, clients=2, steps=1, repeats=1, device="auto")
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines if line.startswith((" flora ", " fedfft "))]
    assert rows == [
        ["flora", "10", "40", "bytes", "32", "4.0", "ms", "2.0", "GB"],
        ["fedfft", "1,000", "4.0", "kB", "1", "2.00", "s", "15.0", "GB"],
    ]
    text = " ".join(result.stdout.split())
    assert "flora against fedfft: 500 times less time per client step, 7.5 times less peak memory" in text
    assert "(the FLoRA paper: up to 34.72 and 2.47)" in text
    assert "11.8 times less memory on top of the libraries" in text
    assert "image features of flora, made once for all rounds" in text
    assert "beware repeats differ (flora 2 times): the machine was busy" in text


def test_one_method_alone_is_compared_with_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "measure_alone", lambda task: SLOW)
    result = bench(*TINY, "--methods", "fedfft")
    assert "against" not in result.stdout
    assert "beware" not in result.stdout
    assert "image features" not in result.stdout


def test_ratios_are_taken_against_the_last_method() -> None:
    found = methods.ratios({"a": FAST, "b": SLOW, "c": SLOW})
    assert found == {  # (15 - 0.8) / (2 - 0.8)
        "a": {"time": 500.0, "memory": 7.5, "memory_above_libraries": pytest.approx(14.2 / 1.2)},
        "b": {"time": 1.0, "memory": 1.0, "memory_above_libraries": 1.0},
    }
    expected = {1234.5: "1,234 times less", 34.72: "34.7 times less", 0.999: "the same", 0.5: "2 times more"}
    assert {ratio: times(ratio) for ratio in expected} == expected


def test_a_group_is_that_of_a_large_cohort() -> None:
    one = methods.measure(methods.Task("fedlc", "flora-tiny", 10, 8, None, 1, 1, "cpu"))
    assert one.clients_at_once == groupsize.MAX_CLIENTS


def test_random_weights_are_mapped_from_a_file_that_is_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "load_open_clip", lambda *rest: (small_model(), None))
    with methods.weights_file("ViT-B-32") as file:
        assert file is not None
        assert methods.model_config("ViT-B-32", weights_file=file).pretrained == file
        assert set(load_file(file)) == set(small_model().state_dict())
    assert not Path(file).parent.exists()
    with methods.weights_file("flora-tiny") as file:
        assert file is None


def test_weights_that_find_no_room_are_told_with_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*rest: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(methods, "load_open_clip", lambda *rest: (small_model(), None))
    monkeypatch.setattr(methods, "save_file", fail)
    with (
        pytest.raises(UserError, match="No space left on device; set TMPDIR to a folder with room"),
        methods.weights_file("ViT-B-32"),
    ):
        pytest.fail("went on")


def test_class_names_are_distinct_words() -> None:
    names = workload.class_names(1000)
    assert len(set(names)) == 1000
    assert all(name.isalpha() and name.islower() for name in names)


def test_mistakes_are_answered_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "measure_alone", lambda task: pytest.fail("measured"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "no method 'fedft'; did you mean 'fedfft'?" in refusal("--methods", "flora,fedft")
    assert refusal("--methods", "flora, flora") == "--methods: names flora twice; name it once"
    assert refusal("--methods", ",").startswith("--methods: names no method")
    assert "--model: no model 'ViT-B-3'; did you mean 'ViT-B-32'?" in refusal("--model", "ViT-B-3")
    assert refusal("--device", "cuda").endswith("take --device auto or cpu")
    for option in ("--classes", "--batch-size", "--clients", "--steps", "--repeats"):
        assert bench(option, "0").exit_code == 2


def test_a_process_that_is_killed_is_told_with_what_to_lower(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for text, message in {
        "kill -9 $$": r"flora: .* killed by signal 9, most likely because memory ran out; lower --batch-size",
        "exit 3": r"flora: its process failed with exit code 3",
        """echo '{"error": "no"}'""": r"flora: no",
    }.items():
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\n{text}\n")
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))
        with pytest.raises(UserError, match=message):
            methods.measure_alone(TASK)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError(), RuntimeError("[...] can't allocate memory: [...]")])
def test_memory_that_runs_out_is_told_with_what_to_lower(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(task: Any) -> None:
        raise error

    monkeypatch.setattr(methods, "measure", fail)
    monkeypatch.setattr(sys, "argv", ["", json.dumps(TASK.__dict__)])
    methods.main()
    assert json.loads(capsys.readouterr().out)["error"].startswith("memory ran out; lower --batch-size")


def test_more_classes_than_there_are_words_are_refused() -> None:
    with pytest.raises(UserError, match="--classes: there are names for at most"):
        workload.class_names(10**6)
