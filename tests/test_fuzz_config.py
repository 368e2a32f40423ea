"""1,000 configurations with random mistakes: each becomes a Config or is refused in sentences, soon, and nothing is written."""

import random
import sys
import time
from pathlib import Path

import pytest

from flora_hpc.cli import main
from flora_hpc.config import Config
from flora_hpc.configfile import FAMILY_OF, load, load_comm
from flora_hpc.errors import UserError
from flora_hpc.plugins import members
from tests.conftest import ROOT

STARTS = [
    (ROOT / "configs" / "quickstart.yaml").read_text(),
    "base: other.yaml\nrounds: 2\ncomm:\n  backend: serial\n  timeout_seconds: 9\ndata: {name: hdf5, path: x.h5}\n",
    """seed: 3
rounds: 2
client:
  lr: 5e-5
  betas: [0.9, 0.98]
  shuffle: true
partition:
  name: quantity
  num_clients: 4
data:
  name: imagefolder
  path: photos
cohort: {size: 2}
method: &m {name: fedprompt, context: 'a photo of a'}
""",
]
VALUES = r"""
true false yes no on off null ~ .inf -.inf .nan 0 -0 -1 1.5 1e400 -1e400 1e-400 008 010 0o17 0x10 1_000 1:30 2024-01-01
9223372036854775807 9223372036854775808 99999999999999999999999999 [] {} [1] [[1]] {a: 1} {name: flora} '' "" '5' "\0"
"\ud800" ~nobody-of-this-name / . .. /dev/null {} [] &a *a !!int !!python/name:os.system !x <<: | > @ ` % # - ? : , nan auto
none flora digits iid dirichlet fedlc cifar10 hdf5 pairs imagefolder serial mpi text.out_proj [text.out_proj,text.q_proj]
'{}' {x} ..... %s \
""".split()  # noqa: SIM905 -- as a list it takes a page
VALUES += ["", " ", "\t", "9" * 5000, "x" * 5000, "[" * 200, "é\u2028\u200b", "😀", "a b c", "a: b", "{0} {name}"]
PIECES = [
    "\t",
    "  ",
    "\n",
    ":",
    ": ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    "'",
    '"',
    "#",
    "&a ",
    "*a",
    "<<: *m\n",
    "---\n",
    "...\n",
    "\ufeff",
    "\x00",
    "\x85",
    "!",
]
KEYS = [
    *Config.model_fields,
    "lr",
    "name",
    "path",
    "num_clients",
    "epochs",
    "rank",
    "targets",
    "base",
    "no",
    "1",
    "__class__",
    "model_config",
    "",
]


def mutated(pick: random.Random) -> tuple[bytes, list[str]]:
    """A YAML file and overrides, with up to four mistakes."""
    text, overrides = pick.choice(STARTS), []
    for _ in range(pick.choice([1, 1, 1, 2, 4])):
        lines = text.split("\n")
        at, place = pick.randrange(len(lines)), pick.randrange(len(text) + 1)
        kind = pick.choice(["value", "value", "key", "piece", "cut", "indent", "double", "drop", "override", "override", "member"])
        if kind == "value" and ":" in lines[at]:
            lines[at] = f"{lines[at].rpartition(':')[0]}: {pick.choice(VALUES)}"
        elif kind == "key":
            lines[at] = f"{pick.choice(KEYS)}:{lines[at].partition(':')[2]}"
        elif kind == "indent":
            lines[at] = pick.choice([" ", "    ", "\t"]) + lines[at]
        elif kind == "double":
            lines.insert(pick.randrange(len(lines)), lines[at])
        elif kind == "drop":
            del lines[at]
        text = "\n".join(lines)
        if kind == "piece":
            text = text[:place] + pick.choice(PIECES) + text[place:]
        elif kind == "cut":
            text = text[:place]
        elif kind == "override":
            key = ".".join(pick.choice(KEYS) for _ in range(pick.choice([1, 2, 2, 2, 3])))
            overrides.append(f"{key}={pick.choice(VALUES)}")
        elif kind == "member":
            section = pick.choice(list(FAMILY_OF))
            overrides.append(f"{section}.name={pick.choice(members(FAMILY_OF[section]))}")
    data = text.encode(pick.choice(["utf-8"] * 18 + ["utf-16", "latin-1"]), "replace")
    if pick.random() < 0.1:
        place = pick.randrange(len(data) + 1)
        data = data[:place] + pick.randbytes(pick.randint(1, 4)) + data[place:]
    return data, overrides


def refusal(path: Path, overrides: list[str]) -> str:
    """What is wrong with a configuration. Empty for one that loads, and loads again from what a run keeps of it."""
    if len(path.read_bytes()) % 4 == 0:
        load_comm(path, overrides)  # what ranks of a wrong configuration connect by
    try:
        config, _ = load(path, overrides)
    except UserError as error:
        return str(error)
    kept = path.with_name("kept.yaml")
    kept.write_text(config.to_yaml(), encoding="utf-8")
    again, _ = load(kept)
    assert (again, again.essence()) == (config, config.essence())
    kept.unlink()
    return ""


@pytest.mark.parametrize("hundred", range(10))
def test_a_mutated_configuration_is_read_or_refused(hundred: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path, other, refused = tmp_path / "run.yaml", tmp_path / "other.yaml", 0
    other.write_text("seed: 1\nclient: {epochs: 2}\n")
    for number in range(100 * hundred, 100 * (hundred + 1)):
        data, overrides = mutated(random.Random(number))
        path.write_bytes(data)
        started = time.perf_counter()
        try:
            text = refusal(path, overrides)
        except Exception as error:
            raise AssertionError(f"{number}: {data!r} {overrides}") from error
        refused += bool(text)
        assert time.perf_counter() - started < 5, (number, data, overrides)
        assert len(text) < 20_000, (number, text)
        assert all(line.strip() for line in text.splitlines()), (number, text)
        assert sorted(tmp_path.iterdir()) == [other, path]
    assert 30 < refused < 100  # most mistakes are mistakes, and some configurations still load


def test_the_command_line_refuses_with_code_2_and_makes_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path, other, num_refused = tmp_path / "run.yaml", tmp_path / "other.yaml", 0
    other.write_text("seed: 1\nclient: {epochs: 2}\n")
    for number in range(1000, 1050):
        data, overrides = mutated(random.Random(number))
        path.write_bytes(data)
        if not refusal(path, overrides):
            continue
        num_refused += 1
        words = [word for text in overrides for word in ("-s", text)]
        monkeypatch.setattr(sys, "argv", ["flora-hpc", "run", str(path), *words, "--out", str(tmp_path / "out")])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        assert ended.value.code == 2, (number, told)
        assert told.err.startswith("flora-hpc: "), (number, told.err)
        assert "Traceback" not in told.err
        assert sorted(tmp_path.iterdir()) == [other, path]
    assert num_refused > 25
