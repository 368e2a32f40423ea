"""Simulate federated LoRA fine-tuning of vision-language models on HPC clusters."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flora_hpc.records.opened import Run

__version__ = "0.1.0"
SPIN_COUNT = "10000"  # instead of libgomp's 300,000: as fast on cores of their own, and faster where several processes want them


def _fix_bits_of_matrix_products() -> None:
    """Ask MKL for the same bits with any number of threads; it reads this once, so it must precede the import of torch."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return
    branch = "AVX512" if "avx512f" in flags else "AVX2" if "avx2" in flags else None
    if branch:
        os.environ.setdefault("MKL_CBWR", f"{branch},STRICT")


def _spin_briefly() -> None:
    """Let threads that wait for each other spin some tenths of a millisecond, not milliseconds, before they leave their core.

    libgomp, which PyTorch brings, reads this once, so it must precede the import of torch. docs/performance.md has the figures.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT


_fix_bits_of_matrix_products()
_spin_briefly()
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # the same for a GPU's products


def open_run(path: str | Path) -> "Run":
    """Open a run for reading, finished or still being written: its tables as pandas frames, its configuration and its status.

    `path` is a run directory or its run.h5. Raises flora_hpc.errors.UserError when it is not a run's.
    """
    from flora_hpc.records.opened import open_run as opened  # h5py takes its time to import

    return opened(path)
