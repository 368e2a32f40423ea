"""Simulate federated LoRA fine-tuning of vision-language models on HPC clusters."""

import importlib
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flora_hpc.api import load_config, plan, run
    from flora_hpc.config import Config
    from flora_hpc.errors import StoppedError, UserError
    from flora_hpc.forecast import Plan
    from flora_hpc.records.opened import Run, open_run
    from flora_hpc.records.study import Point, Study, open_study
    from flora_hpc.shared import Shared

__version__ = "0.1.0"
SPIN_COUNT = "10000"  # instead of libgomp's 300,000: as fast on cores of their own, and faster where several processes want them
__all__ = [
    "Config", "Plan", "Point", "Run", "Shared", "StoppedError", "Study", "UserError", "__version__",
    "load_config", "open_run", "open_study", "plan", "run",
]  # fmt: skip
HOMES = {  # of the public names: each is imported when it is first asked for, since PyTorch takes seconds
    "Config": "config",
    "Plan": "forecast",
    "Point": "records.study",
    "Run": "records.opened",
    "Shared": "shared",
    "StoppedError": "errors",
    "Study": "records.study",
    "UserError": "errors",
    "load_config": "api",
    "open_run": "records.opened",
    "open_study": "records.study",
    "plan": "api",
    "run": "api",
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'flora_hpc' has no attribute {name!r}")
    return getattr(importlib.import_module(f"flora_hpc.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def _fix_bits_of_matrix_products() -> None:
    """Ask MKL for the same bits with any number of threads; it reads this once, so it must precede the import of torch."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return
    branch = "AVX512" if "avx512f" in flags else "AVX2" if "avx2" in flags else None
    if not branch or "MKL_CBWR" in os.environ:
        return
    os.environ["MKL_CBWR"] = f"{branch},STRICT"
    if "torch" in sys.modules:
        warnings.warn(
            "import flora_hpc before torch: MKL may have read MKL_CBWR already, and then another number of threads may give other "
            "last bits",
            stacklevel=3,
        )


def _spin_briefly() -> None:
    """Let threads that wait for each other spin some tenths of a millisecond, not milliseconds, before they leave their core.

    libgomp, which PyTorch brings, reads this once, so it must precede the import of torch. docs/performance.md has the figures.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT


_fix_bits_of_matrix_products()
_spin_briefly()
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # the same for a GPU's products
