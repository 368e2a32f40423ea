"""Words of a command line that are no options and no arguments: what is said, and with which cure."""

import pytest

from flora_hpc.cli import _usage, app

CASES = {
    "a key as an option": (
        "run quickstart --rounds 2",
        "--rounds: there is no such option; set keys with -s, for example -s rounds=2",
    ),
    "a key of a section": (
        "run quickstart --lr=0.1",
        "--lr: there is no such option; set keys with -s, for example -s client.lr=0.1",
    ),
    "without a value": (
        "run quickstart --client.batch-size",
        "--client.batch-size: there is no such option; set keys with -s, for example -s client.batch_size=VALUE",
    ),
    "keys as arguments": ("run quickstart rounds=2 seed=1", "rounds=2 seed=1: set keys with -s, for example -s rounds=2 -s seed=1"),
    "a mistyped key": ("run quickstart --round 3", "--round: there is no such option; set keys with -s, for example -s rounds=3"),
    "a key and its value apart": ("run quickstart -s rounds 6", "rounds 6: a key and its value are one word: -s rounds=6"),
    "no configuration": ("run", "run: which configuration? for example quickstart, or a YAML file"),
    "a word for a number": ("plan quickstart --ranks four", "--ranks: must be a whole number, such as --ranks 4"),
    "no key": ("run quickstart --nonsense", ""),
    "a command without keys": ("show runs/a --rounds 2", ""),
    "a choice": ("export runs/a --to onnx", "--to: 'onnx' is not one of 'peft', 'open_clip', 'transformers'"),
}


@pytest.mark.parametrize(("line", "sentence"), CASES.values(), ids=CASES.keys())
def test_a_mistake_gets_its_cure(line: str, sentence: str) -> None:
    with pytest.raises(Exception) as error:  # noqa: PT011 -- a class of the library inside typer
        app(line.split(), standalone_mode=False)
    assert _usage.sentence(error.value, line.split()) == sentence
