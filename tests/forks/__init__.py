"""Starts of flora-hpc that cost no seconds of imports: forks of one process that has them done.

`PYTHON` is what tests put before `-m flora_hpc` or a script of theirs, in place of Python, also under mpiexec. It is `client.py`,
which hands its words, folder, environment, open files and cores to `server.py` and ends as the fork does: with its exit status, or
by its signal. What is sent to the client reaches the fork.

Where Python would start in another way (variables that are read once, such as OMP_NUM_THREADS), the client becomes Python itself.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ADDRESS = "FLORA_HPC_TEST_FORKS"
HERE = Path(__file__).parent
PYTHON = [sys.executable, "-I", "-S", str(HERE / "client.py"), sys.executable]


def torchrun(num_ranks: int) -> list[str]:
    """What to put before `-m flora_hpc` or a script for ranks of torchrun, which is a fork, too."""
    run = [*PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    return [*run, "--no-python", *PYTHON]


@contextmanager
def served() -> Iterator[None]:
    """Inside, `PYTHON` finds a server."""
    with tempfile.TemporaryDirectory() as folder:
        address = str(Path(folder) / "forks")
        command = [sys.executable, str(HERE / "server.py"), address]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=HERE.parent.parent) as server:
            assert server.stdin is not None
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            os.environ[ADDRESS] = address
            yield
            del os.environ[ADDRESS]
            server.stdin.close()
