import time
from pathlib import Path

from flora_hpc.bench.cluster import surround


def test_settings_that_decide_speed_and_no_others() -> None:
    environ = {"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "4", "SLURM_JOB_ACCOUNT": "secret", "HOME": "/h", "SLURM_CPU_BIND": "cores"}
    assert surround.settings(environ) == {"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "4", "SLURM_CPU_BIND": "cores"}


def test_clocks(tmp_path: Path) -> None:
    (tmp_path / "scaling_governor").write_text("performance\n")
    assert surround.clocks(tmp_path)["scaling_governor"] == "performance"
    assert "cpuinfo_max_freq" not in surround.clocks(tmp_path)


def test_the_age_of_the_process_grows() -> None:
    first = surround.age_seconds()
    time.sleep(0.05)
    assert 0.04 < surround.age_seconds() - first < 5
