"""What the user must change, in one clear message."""

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """A mistake of the user's: shown without a traceback, ends the program with exit code 2."""


class StoppedError(Exception):
    """A signal stopped the job, on every rank; what it says is how to go on. Ends the program with exit code 75.

    `num_rounds` is how many rounds the job saved since it started.
    """

    def __init__(self, sentence: str, num_rounds: int = 0) -> None:
        super().__init__(sentence)
        self.num_rounds = num_rounds


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest of `choices`, or nothing when none is near."""
    by_lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
    return f"; did you mean '{by_lower[near[0]]}'?" if near else ""


def reason(error: BaseException) -> str:
    """What an error says, on one line: the system's own words, which HDF5 and safetensors hide among addresses and paths.

    What PyTorch says of its C++ comes before a hundred lines of addresses.
    """
    text = " ".join(str(error).partition("Exception raised from ")[0].split())
    if told := re.search(r"error message = '([^']+)'", text):
        return told[1]
    if number := re.search(r"\(os error (\d+)\)", text):
        return os.strerror(int(number[1]))
    system = getattr(error, "strerror", None)
    if not isinstance(system, str) and (number := re.search(r"\[Errno (\d+)\]", text)):  # one of many, of shutil's
        return os.strerror(int(number[1]))
    return " ".join((system if isinstance(system, str) else text).split())[:200] or type(error).__name__


def lock_cure(error: Exception) -> str:
    """`; unset HDF5_USE_FILE_LOCKING ...` where HDF5 could not lock a file, and nothing otherwise.

    Files are opened without locks, which Lustre and NFS may lack; the variable goes before that.
    """
    is_lock = "unable to lock file" in str(error)
    return "; unset HDF5_USE_FILE_LOCKING, or set it to FALSE: this file system has no locks" if is_lock else ""


def at_home(path: str | Path, instead: str = "write the path out", key: str = "") -> Path:
    """A path with `~` written out. Raises UserError, with the cure `instead`, where nobody knows the home folder.

    So it is in containers whose user has no entry in /etc/passwd, and with the name of a user who does not exist. Option `key` gave
    the path.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        place, user = f"{key}: {path}" if key else f"{path}", Path(path).parts[0]
        if user == "~":
            raise UserError(f"{place}: HOME is not set, so the home folder is not known; export HOME, or {instead}") from None
        raise UserError(f"{place}: begins with ~ and no known user; {instead}") from None
