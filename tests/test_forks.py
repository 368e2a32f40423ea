"""What starts as a fork, in place of Python, finds what Python would find."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forks

pytestmark = pytest.mark.usefixtures("python")

TELLS = """
import json, os, sys, tempfile, time
names = ("stdin", "stdout", "stderr")
streams = [(stream.errors, stream.encoding.lower()) for stream in (getattr(sys, name) for name in names)]
umask = os.umask(0)
is_fork = "flora_hpc.loop" in sys.modules
facts = {"streams": streams, "umask": umask, "folder": tempfile.gettempdir(), "zone": time.tzname, "words": sys.argv[1:]}
print(json.dumps([is_fork, facts]))
"""


def told(python: list[str], script: Path, **environment: str) -> tuple[bool, dict[str, object]]:
    command = [*python, str(script), "a", "b"]
    run = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=os.environ | environment, umask=0o027, check=True
    )
    return tuple(json.loads(run.stdout))  # type: ignore[return-value]


def test_a_fork_finds_what_python_finds(tmp_path: Path) -> None:
    script = tmp_path / "tells.py"
    script.write_text(TELLS)
    environment = {"TZ": "XYZ-3", "TMPDIR": str(tmp_path)}
    (is_fork, facts), (_, expected) = (told(python, script, **environment) for python in (forks.PYTHON, [sys.executable]))
    assert is_fork
    assert facts == expected
    assert (facts["folder"], facts["zone"], facts["umask"]) == (str(tmp_path), ["XYZ", "XYZ"], 0o027)


@pytest.mark.parametrize("name", ["HDF5_USE_FILE_LOCKING", "HF_HOME", "OMP_NUM_THREADS"])
def test_variables_that_are_read_once_need_a_new_process(name: str, tmp_path: Path) -> None:
    script = tmp_path / "tells.py"
    script.write_text(TELLS)
    is_fork, _ = told(forks.PYTHON, script, **{name: "7"})
    assert not is_fork
