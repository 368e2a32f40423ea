"""Checks of what a job script is made of: what Slurm would refuse, and what a script cannot hold."""

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from flora_hpc.errors import UserError, reason

WARNING_SECONDS = 120  # before the time limit, or up to a minute more, Slurm sends its signal
SHORTEST_SECONDS = 300
MOST_SETUP_BYTES = 65_536
CONTROL = "[\x00-\x1f\x7f\ud800-\udfff]"  # characters that no line of a script may have
OWN_OPTIONS = {  # keys of sbatch with an option of ours
    "nodes": "--nodes",
    "ntasks": "--nodes and --ntasks-per-node",
    "ntasks-per-node": "--ntasks-per-node",
    "cpus-per-task": "--cpus-per-task",
    "gpus-per-node": "--gpus-per-node",
    "time": "--time",
    "partition": "--partition",
    "account": "--account",
    "array": "--array, or --shards for a study",
}
OWN_LINES = ("job-name", "signal", "requeue", "no-requeue", "open-mode", "output")  # keys that every script has, without an option
NO_SCRIPT = ("wrap", "wait", "parsable", "test-only", "help", "version", "usage")  # keys for the command line of sbatch


def at_least(option: str, number: int, least: int) -> None:
    """Raise UserError for a number below `least`."""
    if number < least:
        raise UserError(f"{option}: must be at least {least}, not {number}")


def plain_text(option: str, text: str | None) -> None:
    """Raise UserError for an empty text, and for one that does not fit on a line of a script."""
    if text is not None and (not text or re.search(CONTROL, text)):
        raise UserError(f"{option}: {text!r} is empty or holds a line break or another control character; write plain text")


def plain_name(option: str, name: str | None) -> None:
    """Raise UserError for a name with other characters than names of partitions and accounts have."""
    if name is not None and not re.fullmatch(r"[\w.,@+:-]+", name, re.ASCII):
        raise UserError(f"{option}: {name!r} is no name; give letters, digits and . , @ + : - _ only")


def time_limit(time: str) -> None:
    """Raise UserError for a time limit that Slurm does not read, or that ends before its warning."""
    if (limit := seconds(time)) < SHORTEST_SECONDS:
        raise UserError(
            f"--time: {time} is {limit} seconds to Slurm, whose warning comes up to {WARNING_SECONDS + 60} seconds before the "
            f"end; give at least {SHORTEST_SECONDS // 60} minutes, as hours:minutes:seconds, for example 2:00:00"
        )


def seconds(time: str) -> int:
    """A time limit as Slurm reads it: 90 and 90:00 are minutes, 2:00:00 hours, 1-12 and 1-12:30:00 days. Raises UserError."""
    days = re.fullmatch(r"(?:(\d{1,4})-)(\d\d?)(?::(\d\d))?(?::(\d\d))?", time, re.ASCII)
    hours = re.fullmatch(r"()(\d{1,4}):(\d\d):(\d\d)", time, re.ASCII)
    minutes = re.fullmatch(r"()()(\d{1,6})(?::(\d\d))?", time, re.ASCII)
    match = days or hours or minutes
    d, h, m, s = (int(text or 0) for text in match.groups()) if match else (0, 0, 0, 0)
    if not match or s > 59 or (m > 59 and not minutes) or (h > 23 and days):
        raise UserError(
            f"--time: {time!r} is no time limit; give hours:minutes:seconds or days-hours:minutes:seconds, such as 2:00:00"
        )
    return ((d * 24 + h) * 60 + m) * 60 + s


def sbatch_options(texts: Sequence[str]) -> dict[str, str]:
    """The keys and values of `--sbatch KEY=VALUE`; a key alone has an empty value.

    Raises UserError for keys that a script cannot have, or sets itself.
    """
    options: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.removeprefix("--").partition("=")
        if not re.fullmatch(r"[a-z][a-z0-9]+(-[a-z0-9]+)*", key):
            raise UserError(
                f"--sbatch: {text!r} does not begin with the long name of an option of sbatch; "
                "write KEY=VALUE or KEY, such as qos=high or exclusive"
            )
        if equals or re.search(CONTROL, value):
            plain_text(f"--sbatch {key}", value)
        if key in OWN_OPTIONS:
            raise UserError(f"--sbatch {key}: the script sets this itself; give {OWN_OPTIONS[key]} instead")
        if key in OWN_LINES:
            raise UserError(
                f"--sbatch {key}: the script sets this itself; to replace it, give --{key} on the command line of sbatch: "
                f"sbatch --{key}{'=...' * bool(equals)} job.sh"
            )
        if key in NO_SCRIPT:
            raise UserError(f"--sbatch {key}: is nothing that a script can ask for; give it on the command line of sbatch")
        if key in options:
            raise UserError(f"--sbatch {key}: is given twice; give it once")
        options[key] = value
    return options


def setup_lines(file: Path) -> str:
    """The text of `--setup FILE`, which goes into the script as it is. Raises UserError where a script cannot hold it."""
    try:
        with file.open("rb") as stream:
            data = stream.read(MOST_SETUP_BYTES + 1)
    except OSError as error:
        raise UserError(
            f"--setup: {file}: cannot be read ({reason(error)}); give a text file with lines such as 'module load openmpi'"
        ) from None
    if len(data) > MOST_SETUP_BYTES:
        raise UserError(f"--setup: {file}: is larger than {MOST_SETUP_BYTES // 1024} KB; give only lines that the job needs")
    text = data.decode(errors="replace")
    if re.search("[\x00-\x08\x0b-\x1f\x7f\ufffd]", text.replace("\r\n", "\n")):
        raise UserError(f"--setup: {file}: is no text (UTF-8); give a file with lines of bash such as 'module load openmpi'")
    if "\r" in text:
        raise UserError(f"--setup: {file}: has the line ends of Windows, which bash does not read; convert it with dos2unix")
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("#SBATCH"):
            raise UserError(f"--setup: {file}: line {number}: {line!r} is an option of sbatch; give it as --sbatch KEY=VALUE")
    if fault := _fault_of_bash(text):
        raise UserError(f"--setup: {file}: bash does not understand it ({fault}); correct these lines")
    return text


def _fault_of_bash(text: str) -> str:
    """What bash says about a text that it cannot parse; empty where it can, and where there is no bash."""
    try:
        result = subprocess.run(["bash", "-n"], input=text, capture_output=True, encoding="utf-8", errors="replace", timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    is_faulty = result.returncode or "here-document" in result.stderr  # of which bash only warns: it would take srun in
    return " ".join(result.stderr.replace("bash: ", "").split())[:200] if is_faulty else ""
