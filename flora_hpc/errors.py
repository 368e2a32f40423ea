"""Errors with one clear message that tells the user what to change."""

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """A mistake of the user. It is printed without a traceback and ends the program with exit code 2."""


class StoppedError(Exception):
    """A signal stopped the job on every rank. The message tells how to resume. Ends the program with exit code 75.

    `num_rounds` is the number of rounds that the job saved since it started.
    """

    def __init__(self, sentence: str, num_rounds: int = 0) -> None:
        super().__init__(sentence)
        self.num_rounds = num_rounds


def did_you_mean(word: str, choices: Iterable[str], least: float = 0.5) -> str:
    """`; did you mean 'x'?` for the most similar of `choices`; empty when none has a similarity of at least `least`, 0..1."""
    by_lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=least)
    return f"; did you mean '{by_lower[near[0]]}'?" if near else ""


def reason(error: BaseException) -> str:
    """The message of an error, on one line. HDF5 and safetensors hide the system's message among addresses and paths.

    PyTorch's message ends before a hundred lines of C++ addresses.
    """
    text = " ".join(str(error).partition("Exception raised from ")[0].split())
    if message := re.search(r"error message = '([^']+)'", text):
        return message[1]
    if number := re.search(r"\(os error (\d+)\)", text):
        return os.strerror(int(number[1]))
    system = getattr(error, "strerror", None)
    if not isinstance(system, str) and (number := re.search(r"\[Errno (\d+)\]", text)):  # the first of shutil's many errors
        return os.strerror(int(number[1]))
    return " ".join((system if isinstance(system, str) else text).split())[:200] or type(error).__name__


def lock_cure(error: Exception) -> str:
    """`; unset HDF5_USE_FILE_LOCKING ...` where HDF5 could not lock a file; empty for other errors.

    flora_hpc opens files without locks, since Lustre and NFS may have none. This variable overrides that.
    """
    is_lock = "unable to lock file" in str(error)
    return "; unset HDF5_USE_FILE_LOCKING, or set it to FALSE: this file system has no locks" if is_lock else ""


def at_home(path: str | Path, instead: str = "write the path out", key: str = "") -> Path:
    """A path with `~` expanded. Raises UserError, with the cure `instead`, where the home folder is unknown.

    It is unknown in containers whose user has no entry in /etc/passwd, and for a user who does not exist. `key` is the option that
    has the path.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        place, user = f"{key}: {path}" if key else f"{path}", Path(path).parts[0]
        if user == "~":
            raise UserError(f"{place}: HOME is not set, so the home folder is not known; export HOME, or {instead}") from None
        raise UserError(f"{place}: begins with ~ and no known user; {instead}") from None
