"""The user's plugins, in files and in an installed package, under every command that needs them."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from flora_hpc import checkpoint, plugins, userparts
from flora_hpc.cli import app
from flora_hpc.errors import UserError
from flora_hpc.records import hdf5file
from tests import own_parts
from tests.conftest import ROOT, refusal
from tests.own_parts import SETTINGS
from tests.same_runs import adapter

Flora = Callable[..., "subprocess.CompletedProcess[str]"]
Invoke = Callable[..., str]
QUICKSTART = str(ROOT / "configs/quickstart.yaml")


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(plugins, "_used", {})
    userparts.installed.cache_clear()
    yield
    userparts.installed.cache_clear()


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    return own_parts.write(tmp_path / "parts")


def words(squares: Path, out: Path, rounds: int, *more: str) -> list[str]:
    settings = (*SETTINGS, f"data={{name: hdf5, path: {squares}}}", f"rounds={rounds}", *more)
    return ["run", QUICKSTART, "--out", str(out), *(word for setting in settings for word in ("-s", setting))]


# --- runs


@pytest.mark.mpi
def test_a_run_with_own_parts_on_two_ranks_is_resumed_evaluated_shown_and_submitted(
    parts: Path, squares: Path, tmp_path: Path, mpiexec: list[str], flora: Flora, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, own = tmp_path / "run", ["--plugin", str(parts)]
    two = [*mpiexec, "-n", "2"]
    for arguments, under in (
        (words(squares, out, 2), two),
        ([*words(squares, out, 3), "--resume"], two),
        (words(squares, tmp_path / "alone", 3), None),
    ):
        done = flora(*arguments, *own, under=under)
        assert done.returncode == 0, done.stderr
    assert adapter(out) == adapter(tmp_path / "alone")
    attributes = hdf5file.read(out, ())[0]
    assert json.loads(attributes["plugins"])["method my_shift"] == str(parts / "my_shift.py")
    for command in (["show", out], ["report", out]):
        invoke(*command)
    plugins._used.clear()
    assert "was run with method my_shift, partitioner my_stripes from files of its user" in refusal("evaluate", out)
    assert f"add --plugin {parts / 'my_fedavgm.py'} --plugin {parts / 'my_shift.py'} --plugin" in refusal(
        *words(squares, out, 4), "--resume"
    )
    assert "test images right" in invoke("evaluate", out, *own)
    monkeypatch.chdir(tmp_path)
    script = invoke("slurm", QUICKSTART, "--plugin", "parts", *(word for setting in SETTINGS for word in ("-s", setting)))
    assert "--resume \\\n    --plugin parts -s 'algorithm=" in script
    assert "my_fedavgm" in invoke("list", "algorithms", "--plugin", "parts")
    file = parts / "my_shift.py"
    file.write_text(file.read_text() + "# another version\n")
    plugins._used.clear()
    changed = f"--plugin {file}: changed since the run in {out} began with it; put back what it was, or start a new run"
    assert refusal("evaluate", out, *own) == changed
    plugins._used.clear()
    assert refusal(*words(squares, out, 4), *own, "--resume") == changed


def test_the_environment_names_files_too(parts: Path) -> None:
    plan = ["plan", QUICKSTART, "-s", "method.name=my_shift"]
    assert "no method 'my_shift'" in refusal(*plan)
    result = CliRunner().invoke(app, plan, env={"FLORA_HPC_PLUGINS": f"{parts / 'my_stripes.py'}:{parts / 'my_shift.py'}"})
    assert result.exit_code == 0, result.output
    assert "my_shift" in result.output


def test_a_configuration_never_runs_code_by_itself(tmp_path: Path) -> None:
    """A name may be a file's path, or a Python file of that name may be beside the configuration."""
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    (tmp_path / "given.yaml").write_text("method: {name: evil}\n")
    for name in ("evil", "./evil.py", str(tmp_path / "evil.py")):
        assert "no method '" in refusal("plan", tmp_path / "given.yaml", "-s", f"method.name={name}")


# --- installed packages


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder of installed packages that has one with the three parts, as pip leaves it."""
    site = own_parts.write(tmp_path / "site")
    metadata = site / "our_parts-1.5.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: our-parts\nVersion: 1.5\n")
    groups = {"algorithms": "my_fedavgm", "partitioners": "my_stripes", "methods": "my_shift"}
    lines = [line for family, name in groups.items() for line in (f"[flora_hpc.{family}]", f"{name} = {name}")]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    return site


THREE_COMMANDS = """
import json, sys
from flora_hpc.cli import app
for words in json.loads(sys.argv[1]):
    app(words, standalone_mode=False)
    print("--- next")
"""


def test_parts_of_an_installed_package_need_no_option(
    package: Path, parts: Path, squares: Path, tmp_path: Path, invoke: Invoke
) -> None:
    """The same numbers as from files; and `list` names the package of each part."""

    environ = {"PYTHONPATH": f"{package}:{ROOT}", "FLORA_HPC_CACHE": str(tmp_path / "cache")}
    commands = [words(squares, tmp_path / "a", 1), ["evaluate", str(tmp_path / "a")], ["list", "algorithms"]]
    whole = [sys.executable, "-c", THREE_COMMANDS, json.dumps(commands)]
    done = subprocess.run(whole, capture_output=True, text=True, timeout=300, env={**_environ(), **environ})
    assert done.returncode == 0, done.stderr
    _, of_evaluate, of_list = done.stdout.split("--- next\n")[:3]
    invoke(*words(squares, tmp_path / "b", 1), "--plugin", parts)
    assert adapter(tmp_path / "a") == adapter(tmp_path / "b")
    assert "test images right" in of_evaluate
    assert "package our-parts 1.5" in of_list
    attributes = hdf5file.read(tmp_path / "a", ())[0]
    assert json.loads(attributes["plugins"]) == {}
    assert len(json.loads(attributes["identity"])["method my_shift"]) == 32


def _environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHONPATH"))}


# --- the page


def on_the_page(name: str) -> str:
    """The code of a file that docs/own-parts.md shows."""
    block = re.search(rf"`{name}`[^`]*?:?\n\n((?:    .*\n|\n)+)", (ROOT / "docs" / "own-parts.md").read_text())
    assert block is not None, name
    return textwrap.dedent(block[1])


@pytest.mark.parametrize("name", ["my_fedavgm", "my_drift", "my_sign", "my_halves"])
def test_a_file_of_the_page_runs(name: str, squares: Path, tmp_path: Path, invoke: Invoke) -> None:
    file = tmp_path / f"{name}.py"
    file.write_text(on_the_page(file.name))
    assert len(file.read_text().strip().splitlines()) < 40
    section = "partition" if name == "my_halves" else "algorithm"
    own = ["--plugin", file, "-s", f"{section}.name={name}", "-s", f"data={{name: hdf5, path: {squares}}}"]
    invoke("run", QUICKSTART, *own, "-s", "partition.num_clients=2", "-s", "rounds=2", "--out", tmp_path / "run")
    assert hdf5file.read(tmp_path / "run")[0]["status"] == "finished"


def test_the_encoding_of_the_page_goes_together_with_another_algorithm(squares: Path, tmp_path: Path, invoke: Invoke) -> None:
    """Each client sends one bit a number and a scale, and its error is what it did not send."""
    file, settings = tmp_path / "my_sign.py", ("algorithm=fedavgm", "transform.name=my_sign", "partition.num_clients=2", "rounds=1")
    file.write_text(on_the_page(file.name))
    own = [word for setting in (*settings, f"data={{name: hdf5, path: {squares}}}") for word in ("-s", setting)]
    said = invoke("run", QUICKSTART, "--plugin", file, *own, "--out", tmp_path / "run")
    assert re.search(r"algorithm:? +fedavgm, transform of my_sign", said)
    facts, tables = hdf5file.read(tmp_path / "run")
    assert set(tables["clients"]["uplink_bytes"].tolist()) == {(facts["num_params"] + 7) // 8 + 4}
    transform = plugins.member("algorithms", "my_sign").build(None, None).transform
    sent, memory, num_bytes = transform.apply(torch.tensor([[1.0, -2.0, 3.0]]), {"error": torch.tensor([[0.0, 0.0, 3.0]])})
    assert sent.tolist() == [[3.0, -3.0, 3.0]]
    assert memory["error"].tolist() == [[-2.0, 1.0, 3.0]]
    assert num_bytes.tolist() == [5]


def test_the_short_example_of_the_page_is_the_one_of_the_tests() -> None:
    def build(source: str) -> str:
        return "\n".join(line.partition("  #")[0].rstrip() for line in source.partition("def build")[2].strip().splitlines())

    assert build(on_the_page("my_fedavgm.py")) == build(own_parts.FEDAVGM)


def test_the_tests_of_the_page_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_drift.py").write_text(on_the_page("my_drift.py"))
    monkeypatch.syspath_prepend(tmp_path)
    names: dict[str, Any] = {}
    exec(on_the_page("test_my_drift.py"), names)
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()
    sys.modules.pop("my_drift")
    (tmp_path / "test_my_drift.py").write_text(on_the_page("test_my_drift.py"))
    command = [sys.executable, "-W", "error:import flora_hpc before torch", "-c", "import test_my_drift"]
    environ = {name: value for name, value in _environ().items() if name != "MKL_CBWR"} | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environ)
    assert done.returncode == 0, done.stderr


# --- what is refused


BUILD = "\ndef build(options): ...\n"
BAD = {
    "a file that is not there": ("absent.py", None, "there is no such file; did you mean 'near.py'?"),
    "no family": ("rule.py", "def build(options): ...", 'does not say of which family it is; write FAMILY = "algorithms"'),
    "another family": ("rule.py", 'FAMILY = "backends"', "says FAMILY = 'backends'; write FAMILY"),
    "no build": ("rule.py", 'FAMILY = "methods"', "has no function build"),
    "no options": ("rule.py", 'FAMILY = "methods"\ndef build(options): ...', "has no class Options(BaseOptions)"),
    "options of no model": ("rule.py", f'FAMILY = "methods"{BUILD}class Options: ...', "has no class Options(BaseOptions)"),
    "options of another family": (
        "rule.py",
        f'from flora_hpc.parts import BaseOptions\nFAMILY = "partitioners"{BUILD}class Options(BaseOptions): ...',
        "has no class Options(PartitionOptions), with PartitionOptions from flora_hpc.parts",
    ),
    "an error deeper down": ("rule.py", 'import json\n\njson.loads("{")', "cannot be imported: JSONDecodeError in line 3: "),
    "bad syntax": ("rule.py", "\n\ndef build(:", "cannot be imported: SyntaxError in line 3: "),
    "an error": ("rule.py", "\nimport no_such_package", "cannot be imported: ModuleNotFoundError in line 2: No module named"),
    "no Python name": ("my-rule.py", "", "name the file like a Python module, such as my_rule.py"),
    "no Python file": ("rule.txt", "", "name the file like a Python module"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_file_that_is_no_part(what: str, tmp_path: Path) -> None:
    name, source, expected = BAD[what]
    (tmp_path / "near.py").write_text("")
    if source is not None:
        (tmp_path / name).write_text(source)
    with pytest.raises(UserError) as error:
        plugins.use(tmp_path / name)
    assert str(error.value).startswith(f"--plugin {tmp_path / name}: {expected}")


def test_an_import_that_was_interrupted_is_tried_again(tmp_path: Path) -> None:
    file = tmp_path / "rule.py"
    file.write_text("import sys\nif not hasattr(sys, 'second_time'): raise KeyboardInterrupt\n" + own_parts.FEDAVGM)
    with pytest.raises(KeyboardInterrupt):
        plugins.use(file)
    sys.second_time = True  # type: ignore[attr-defined]
    try:
        plugins.use(file)
    finally:
        del sys.second_time  # type: ignore[attr-defined]
    assert "rule" in plugins.members("algorithms")


def test_one_file_by_two_names(parts: Path) -> None:
    plugins.use(parts / "my_shift.py")
    plugins.use(parts / ".." / "parts" / "my_shift.py")


def test_a_dataset_of_ones_own_is_inspected_and_run(parts: Path, tmp_path: Path, invoke: Invoke) -> None:
    words = ["-s", "data={name: my_shades}", "-s", "partition.num_clients=2", "-s", "rounds=1", "--plugin", parts / "my_shades.py"]
    assert "my shades" in invoke("data", "inspect", QUICKSTART, *words)
    invoke("run", QUICKSTART, *words, "--out", tmp_path / "run")
    assert hdf5file.read(tmp_path / "run")[0]["dataset"] == "my shades"


def test_a_rule_that_works_in_place_is_resumed_with_the_same_bits(squares: Path, tmp_path: Path, invoke: Invoke) -> None:
    """A thread, slowed down here, writes the checkpoint of a round while the rule changes its tensors for the next one."""
    file = tmp_path / "my_rule.py"
    body = "velocity.mul_(options.momentum).add_(direction)\n        return adapter.add_(velocity), velocity\n"
    start, _, rest = own_parts.FEDAVGM.lstrip().partition("        velocity = options")
    file.write_text(f"{start}        {body}\n    return{rest.rpartition('    return')[2]}")
    own = ["--plugin", file, "-s", "algorithm={name: my_rule, momentum: 0.9}", "-s", f"data={{name: hdf5, path: {squares}}}"]
    own += ["-s", "partition.num_clients=3", "-s", "checkpoint.every=1"]
    invoke("run", QUICKSTART, *own, "-s", "rounds=4", "--out", tmp_path / "whole")
    write = checkpoint.write

    def slowly(folder: Path, point: checkpoint.Checkpoint, run: str) -> None:
        time.sleep(0.2)
        write(folder, point, run)
        if point.round == 1:
            shutil.copy(checkpoint.path(folder, 1), tmp_path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write", slowly)
        invoke("run", QUICKSTART, *own, "-s", "rounds=2", "--out", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "adapter")
    (tmp_path / "run" / "checkpoint" / "round-000002.safetensors").unlink()
    shutil.copy(tmp_path / "round-000001.safetensors", tmp_path / "run" / "checkpoint")
    with h5py.File(tmp_path / "run" / "run.h5", "r+") as log:
        log.attrs.modify("status", np.bytes_("stopped"))
    said = invoke("run", QUICKSTART, *own, "-s", "rounds=4", "--out", tmp_path / "run", "--resume")
    assert "goes on: after round 1" in said
    assert adapter(tmp_path / "run") == adapter(tmp_path / "whole")


RETURNS = {
    "adapter": "not a Tensor; mend the algorithm",
    "(adapter.double(), velocity)": "not float64 (4096,); mend the algorithm",
    "(adapter[None], velocity)": "not float32 (1, 4096); mend the algorithm",
    "(adapter * float('nan'), velocity)": "made numbers that are not finite; lower its step, or mend the algorithm",
}


@pytest.mark.parametrize("returned", RETURNS)
def test_what_a_rule_returns_is_checked(returned: str, squares: Path, tmp_path: Path) -> None:
    file = tmp_path / "my_rule.py"
    file.write_text(own_parts.FEDAVGM.lstrip().replace("return adapter + velocity, velocity", f"return {returned}"))
    own = ["--plugin", file, "-s", "algorithm={name: my_rule}", "-s", f"data={{name: hdf5, path: {squares}}}"]
    told = refusal("run", QUICKSTART, *own, "-s", "partition.num_clients=2", "-s", "rounds=1", "--out", tmp_path / "run")
    assert told.endswith(RETURNS[returned])


@pytest.mark.parametrize(("name", "kind"), [("my_fedavgm", "Algorithm"), ("my_stripes", "Partitioner"), ("my_shift", "Method")])
def test_what_a_build_returns_is_checked(name: str, kind: str, parts: Path) -> None:
    file = parts / f"{name}.py"
    start, _, _ = file.read_text().partition(f"return {kind}(")
    file.write_text(start.rpartition("\n")[0] + "\n    return build\n")
    family = {"Algorithm": "algorithm", "Partitioner": "partitioner", "Method": "method"}[kind]
    section = "partition" if family == "partitioner" else family
    told = refusal("plan", QUICKSTART, "--plugin", file, "-s", f"{section}={{name: {name}}}")
    assert told == f"{family} '{name}': its build must return a {kind}, not a function; see docs/own-parts.md"


def test_a_folder_without_parts(tmp_path: Path) -> None:
    (tmp_path / "_tools.py").write_text("")
    with pytest.raises(UserError, match=r"no Python file lies in this folder"):
        plugins.use(tmp_path)


def test_no_part_takes_the_name_of_another(parts: Path, tmp_path: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (parts / "my_fedavgm.py").rename(parts / "fedavg.py")
    with pytest.raises(UserError, match=r"algorithm 'fedavg' is one of flora_hpc's own; give the file another name"):
        plugins.use(parts / "fedavg.py")
    other = own_parts.write(tmp_path / "other")
    plugins.use(parts / "my_shift.py")
    plugins.use(parts / "my_shift.py")
    with pytest.raises(UserError, match=r"method 'my_shift' is in .*parts/my_shift.py, too; give one of them another name"):
        plugins.use(other / "my_shift.py")
    monkeypatch.syspath_prepend(package)
    userparts.installed.cache_clear()
    with pytest.raises(UserError, match=r"'my_shift' is a name in package our-parts 1.5 and in .*my_shift.py; rename or uninst"):
        plugins.member("methods", "my_shift")
