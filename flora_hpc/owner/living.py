"""Decide whether the process that owns a run directory lives: by its pid, its heartbeat or Slurm."""

import os
import socket
import subprocess
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from flora_hpc.errors import UserError

DEAD_SECONDS = 60.0  # without a heartbeat, and unknown to Slurm: dead


@dataclass(frozen=True)
class Owner:
    """A process that owns a run directory; the content of its owner file."""

    id: str = ""
    host: str = "?"
    boot: str = ""  # boot id of the machine; changes with every start of the machine
    pid_namespace: str = ""  # a pid is valid only inside its namespace
    pid: int = 0
    started: str = ""  # start time of the process, since the system reuses pids
    job: str = ""  # Slurm's job id
    step: str = ""
    restarts: int = 0  # number of times that Slurm has restarted the job
    time: str = ""
    saved: int = -1  # newest round with a checkpoint when the process took the directory
    idle: int = 0  # earlier starts of this job, in a row, that saved no new round
    ended: bool = False

    def __str__(self) -> str:
        if not self.pid:
            return "an unknown process, whose file cannot be read"
        job = f", Slurm job {self.job}" if self.job else ""
        return f"process {self.pid} on host {self.host}{job}"


def this_process() -> Owner:
    """This process as an owner."""
    task = [os.environ.get(f"SLURM_ARRAY_{name}", "") for name in ("JOB_ID", "TASK_ID")]
    job, step = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_STEP_ID", "")
    return Owner(
        id=uuid.uuid4().hex,
        host=socket.gethostname(),
        boot=_text("/proc/sys/kernel/random/boot_id"),
        pid_namespace=_pid_namespace(),
        pid=os.getpid(),
        started=_process(os.getpid())[1],
        job="_".join(task) if all(task) else job,
        step=f"{job}.{step}" if job and step else "",
        restarts=restarts(),
        time=time.strftime("%Y-%m-%d %H:%M:%S"),
    )


def restarts() -> int:
    """How many times Slurm has restarted (requeued) this job."""
    text = os.environ.get("SLURM_RESTART_COUNT", "")
    return int(text) if text.isdigit() else 0


def lives(owner: Owner, age: float) -> bool | None:
    """Whether an owner lives whose last heartbeat is `age` seconds old; None where only the next heartbeats can decide."""
    current = this_process()
    if owner.ended or (owner.job and owner.job == current.job and owner.restarts < current.restarts):
        return False  # Slurm restarts a job only after all its processes have ended
    if owner.boot and (owner.boot, owner.pid_namespace) == (current.boot, current.pid_namespace):
        state, started = _process(owner.pid)
        return state not in ("", "Z", "X") and started in ("", owner.started)
    if owner.host == current.host and owner.boot and age >= time.clock_gettime(time.CLOCK_BOOTTIME):
        return False  # this machine has restarted since the last heartbeat
    if age < DEAD_SECONDS:
        return None
    return known_to_slurm(owner)


def known_to_slurm(owner: Owner) -> bool:
    """Whether Slurm reports that an owner still runs. Raises UserError when Slurm is installed and does not answer."""
    if not owner.job or (not owner.step and owner.job == this_process().job):  # Slurm knows jobs and steps, not processes
        return False
    selection = ["--steps", owner.step] if owner.step else ["--jobs", owner.job, "--states", "RUNNING,SUSPENDED"]
    try:
        command = ["squeue", "--noheader", "--format=%i", *selection]
        result = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except OSError:  # no Slurm here
        return False
    except subprocess.TimeoutExpired:
        raise UserError(f"squeue does not answer whether {owner} still runs; try again later") from None
    if result.returncode and "nvalid job" not in result.stderr:
        why = " ".join(result.stderr.split())
        raise UserError(f"squeue cannot tell whether {owner} still runs ({why}); try again later")
    return result.returncode == 0 and bool(result.stdout.strip())


def _process(pid: int) -> tuple[str, str]:
    """State and start time of a process; empty where there is none; ('?', '') for a process that this user may not see."""
    values = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if values:
        return values[0], values[19]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "", ""
    except OSError:  # another user's process
        return "?", ""
    return "?", ""


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _text(file: str) -> str:
    try:
        return Path(file).read_text().strip()
    except OSError:
        return ""
