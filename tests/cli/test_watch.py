"""`watch` follows a run of another process."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flora_hpc.records.hdf5file import Writer
from tests.conftest import ROOT
from tests.contracts.known_helpers import round_record, run_info

ROUNDS = ["-s", "rounds=4"]


def start(*arguments: object, **options: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "flora_hpc", *map(str, arguments)]
    environment = os.environ | {"COLUMNS": "80", "LINES": "50", "TERM": "xterm"}
    return subprocess.Popen(command, text=True, cwd=ROOT, env=environment, **options)  # type: ignore[call-overload]


def lines_of_rounds(text: str) -> list[str]:
    return [line.split(" | ")[0] for line in text.splitlines() if re.match(r"round \d+/", line)]


def test_a_live_run_is_followed_to_its_end_without_and_with_a_terminal(tmp_path: Path) -> None:
    """Both start before the run does."""
    out = tmp_path / "run"
    main, terminal = pty.openpty()
    plain = start("watch", out, "--every", 0.2, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    live = start("watch", out, "--every", 0.2, stdout=terminal, stderr=terminal)
    os.close(terminal)
    run = start("run", ROOT / "configs" / "quickstart.yaml", "--out", out, *ROUNDS, "--quiet", stdout=subprocess.PIPE)
    drawn = read_all(main)
    said = plain.communicate(timeout=240)[0]
    assert (plain.returncode, live.wait(60), run.wait(60)) == (0, 0, 0), said
    assert said.startswith(f"waiting for {out}/run.h5, which is not there yet")
    assert said.count("waiting") == 1
    assert lines_of_rounds(said)[-1] == "round 4/4"
    assert lines_of_rounds(said) == sorted(set(lines_of_rounds(said))), "each once, in order"
    assert "run finished" in said
    assert "\x1b" not in said
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn)
    assert "╭─ flora-hpc" in text
    assert "round 4/4" in text
    assert "run finished" in text
    last = run.communicate()[0].splitlines()
    assert len(last) == 1
    assert last[0].startswith("run finished, 4 rounds, test accuracy ")


def read_all(descriptor: int) -> str:
    """All that a terminal is sent."""
    parts = []
    while True:
        try:
            data = os.read(descriptor, 65536)
        except OSError:  # Linux: the other side is closed
            break
        if not data:
            break
        parts.append(data)
    os.close(descriptor)
    return b"".join(parts).decode()


@pytest.mark.parametrize(("status", "code"), [("finished", 0), ("stopped", 75), ("failed", 1), ("interrupted", 1)])
def test_the_exit_code_is_the_runs(tmp_path: Path, status: str, code: int) -> None:
    writer = Writer(tmp_path / "run.h5", run_info())
    writer.add(round_record(0, accuracy=0.25))
    writer.close(status)
    watching = start("watch", tmp_path, stdout=subprocess.PIPE)
    assert f"run {status}" in watching.communicate(timeout=60)[0]
    assert watching.returncode == code


@pytest.mark.parametrize("view", ["plain", "live"])
def test_ctrl_c_leaves_quietly(tmp_path: Path, view: str) -> None:
    writer = Writer(tmp_path / "run.h5", run_info())
    writer.add(round_record(0, accuracy=0.25))
    watching = start("watch", tmp_path, "--view", view, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    seen = ""
    while "0/2" not in seen:
        seen += watching.stdout.readline()
    time.sleep(0.3)
    watching.send_signal(signal.SIGINT)
    _, told = watching.communicate(timeout=60)
    assert (told, watching.returncode) == ("", 130)
    writer.close("finished")


def test_a_foreign_file_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "run.h5").write_text("not a run")
    watching = start("watch", tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    _, told = watching.communicate(timeout=60)
    assert told == f"flora-hpc: {tmp_path}/run.h5: is not an HDF5 file; give a run directory or its run.h5\n"
    assert watching.returncode == 2
