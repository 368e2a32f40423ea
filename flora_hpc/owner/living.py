"""A process that owns a run directory, and whether it lives: told by its pid, by its signs of life, or by Slurm."""

import os
import socket
import subprocess
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from flora_hpc.errors import UserError

DEAD_SECONDS = 60.0  # without a sign, and unknown to Slurm


@dataclass(frozen=True)
class Owner:
    """A process that owns a run directory, as its file describes it."""

    id: str = ""
    host: str = "?"
    boot: str = ""  # changes with every start of a machine
    pid_namespace: str = ""  # a pid means something within it alone
    pid: int = 0
    started: str = ""  # when the process began: a pid is used again
    job: str = ""  # Slurm's
    step: str = ""
    restarts: int = 0  # times that Slurm started the job again
    time: str = ""
    saved: int = -1  # newest round with a checkpoint when the process took the directory
    idle: int = 0  # starts of this job before it, in a row, that saved no new round
    ended: bool = False

    def __str__(self) -> str:
        if not self.pid:
            return "an unknown process, whose file cannot be read"
        job = f", Slurm job {self.job}" if self.job else ""
        return f"process {self.pid} on host {self.host}{job}"


def me() -> Owner:
    """This process."""
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
    """How many times Slurm has started this job again by itself."""
    text = os.environ.get("SLURM_RESTART_COUNT", "")
    return int(text) if text.isdigit() else 0


def lives(owner: Owner, age: float) -> bool | None:
    """Whether an owner lives whose last sign is `age` seconds old; None where only the next signs can tell."""
    here = me()
    if owner.ended or (owner.job and owner.job == here.job and owner.restarts < here.restarts):
        return False  # Slurm starts a job again only when its processes have gone
    if owner.boot and (owner.boot, owner.pid_namespace) == (here.boot, here.pid_namespace):
        state, started = _process(owner.pid)
        return state not in ("", "Z", "X") and started in ("", owner.started)
    if owner.host == here.host and owner.boot and age >= time.clock_gettime(time.CLOCK_BOOTTIME):
        return False  # this machine has started again since
    if age < DEAD_SECONDS:
        return None
    return known_to_slurm(owner)


def known_to_slurm(owner: Owner) -> bool:
    """Whether Slurm says that an owner still runs. Raises UserError when Slurm is there and does not answer."""
    if not owner.job or (not owner.step and owner.job == me().job):  # of its own allocation Slurm knows no process
        return False
    which = ["--steps", owner.step] if owner.step else ["--jobs", owner.job, "--states", "RUNNING,SUSPENDED"]
    try:
        words = ["squeue", "--noheader", "--format=%i", *which]
        result = subprocess.run(words, capture_output=True, text=True, timeout=30)
    except OSError:  # no Slurm here
        return False
    except subprocess.TimeoutExpired:
        raise UserError(f"squeue does not answer whether {owner} still runs; try again later") from None
    if result.returncode and "nvalid job" not in result.stderr:
        why = " ".join(result.stderr.split())
        raise UserError(f"squeue cannot tell whether {owner} still runs ({why}); try again later")
    return result.returncode == 0 and bool(result.stdout.strip())


def _process(pid: int) -> tuple[str, str]:
    """The state of a process and when it began, empty for none; ('?', '') of one that may not be looked at."""
    text = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if text:
        return text[0], text[19]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "", ""
    except OSError:  # another user's
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
