"""Versions and settings of what decides the numbers."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from flora_hpc import __version__

PACKAGES = ("torch", "open_clip_torch", "peft", "numpy", "h5py", "mpi4py", "mpich", "openmpi")


def versions() -> dict[str, str]:
    """By package; those that are not installed are left out."""
    rows = {"flora_hpc": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            rows[package] = version(package)
        except PackageNotFoundError:
            continue
    return rows | {"MKL_CBWR": os.environ.get("MKL_CBWR", "")}
