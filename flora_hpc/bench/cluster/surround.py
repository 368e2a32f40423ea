"""What surrounds a benchmark: settings of MPI, NCCL, threads and Slurm, clocks and power, the time since the process began."""

import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

# Prefixes of variables that decide speed; Slurm's own are chosen by name, since some name users and accounts
PREFIXES = (
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "NCCL_", "GLOO_", "UCX_", "FI_", "I_MPI_", "MPICH_", "MPIR_CVAR_"),
    *("OMPI_MCA_btl", "OMPI_MCA_pml", "OMPI_MCA_mpi_", "OMPI_MCA_coll", "PSM2_", "TORCH_NCCL_", "CUDA_", "MALLOC_"),
)
OF_SLURM = (
    *("SLURM_JOB_PARTITION", "SLURM_JOB_NUM_NODES", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE", "SLURM_CPUS_PER_TASK"),
    *("SLURM_CPU_BIND", "SLURM_DISTRIBUTION", "SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_NODE", "SLURM_MPI_TYPE", "SLURM_CLUSTER_NAME"),
)
CLOCKS = Path("/sys/devices/system/cpu/cpu0/cpufreq")
GPU_FACTS = ("clocks.sm", "clocks.max.sm", "power.draw", "power.limit", "driver_version")
SECONDS = 10.0  # for nvidia-smi


def settings(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Environment variables that decide how fast ranks compute and communicate."""
    return {name: environ[name] for name in sorted(environ) if name.startswith(PREFIXES) or name in OF_SLURM}


def clocks(folder: Path = CLOCKS) -> dict[str, str]:
    """Governor and clock rates in kHz of the first processor, and what nvidia-smi says of the first GPU; what cannot be read is
    left out.
    """
    rows = {}
    for name in ("scaling_governor", "scaling_cur_freq", "cpuinfo_max_freq"):
        try:
            rows[name] = (folder / name).read_text().strip()
        except OSError:
            continue
    try:
        query = ["nvidia-smi", f"--query-gpu={','.join(GPU_FACTS)}", "--format=csv,noheader"]
        text = subprocess.run(query, capture_output=True, text=True, timeout=SECONDS, check=True).stdout
        rows |= dict(zip(GPU_FACTS, map(str.strip, text.splitlines()[0].split(",")), strict=False))
    except (OSError, subprocess.SubprocessError, IndexError):
        pass
    return rows


def age_seconds() -> float:
    """Seconds since this process began, Python's start and imports included."""
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])  # field 22, in ticks since the boot
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
