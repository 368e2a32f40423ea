"""What the package sets in the environment before PyTorch is imported, and what it leaves to the user."""

import os
import subprocess
import sys

import pytest

from flora_hpc import SPIN_COUNT

OWN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def start(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    others = {name: text for name, text in os.environ.items() if name not in OWN}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200, env=others | environment)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, SPIN_COUNT),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"),  # which a count would undo
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "None"),
    ],
)
def test_a_wish_of_the_users_goes_before_the_spin_count(own: dict[str, str], expected: str) -> None:
    result = start("import flora_hpc, os; print(os.environ.get('GOMP_SPINCOUNT'))", **own)
    assert result.stdout == f"{expected}\n", result.stderr


def test_torchs_threads_spin_as_often_as_that() -> None:
    """libgomp says so itself, on standard error, when it is loaded."""
    result = start("import flora_hpc.cli, torch", OMP_DISPLAY_ENV="verbose")
    if "GOMP_SPINCOUNT" not in result.stderr:
        pytest.skip("PyTorch has another OpenMP library here")
    assert f"GOMP_SPINCOUNT = '{SPIN_COUNT}'" in result.stderr
