"""A run directory has one owner: the living process that writes its files.

    owner-000001.json    the first owner, which ended or died
    owner-000002.json    the owner that took over from it: the highest number counts

A number is given once: its file is made only where there is none, and no lock is needed. Its owner touches the file every few
seconds. The age of that sign is told by the file system's own clock, since the clocks of two hosts may differ.
"""

import json
import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from flora_hpc.errors import UserError, reason
from flora_hpc.owner import living
from flora_hpc.owner.living import Owner

BEAT_SECONDS = 5.0  # between two signs of life
NAME = re.compile(r"owner-(\d+)\.json")


class Claim:
    """The ownership of a run directory, from `take` until the end of the `with` block. It is an observer, too: the first one.

    `say` is told when the directory must be waited for, and, once the run goes on, that it was taken over from a dead owner.
    """

    def __init__(self, folder: Path, say: Callable[[str], None] = lambda sentence: None) -> None:
        self.folder, self._say = folder, say
        self.owner = Owner()
        self._number = 0  # 0 while the directory is not taken
        self._made: list[Path] = []  # folders that were not there before, the innermost first
        self._writes = False
        self._unwritable = ""
        self._takes_over = ""  # from whom, and when that owner died
        self._lost = ""
        self._looked = 0.0
        self._end = threading.Event()
        self._beats: threading.Thread | None = None

    def take(self, saved: Callable[[], int] = lambda: -1) -> None:
        """Become the owner, unless this process is it already. `saved` tells the newest round that has a checkpoint.

        Raises UserError where a living process owns the directory. Where nothing can be written, `require` says so.
        """
        if self._number or self._unwritable:
            return
        try:
            self._take(saved)
        except OSError as error:
            full = "make room on its disk, or make it writable"
            cure = full if (self.folder / "run.h5").exists() else "choose a directory that can"
            self._unwritable = f"--out {self.folder}: cannot be written ({reason(error)}); {cure}"

    def require(self) -> None:
        """Raise UserError when the directory could not be taken, since nothing can be written there."""
        if self._unwritable:
            raise UserError(self._unwritable)

    def _take(self, saved: Callable[[], int]) -> None:
        own = living.me()
        part = self.folder / f".owner-{own.id}"
        try:
            while not self._number:
                self._make_folders()
                try:
                    self._number = self._try(own, part, saved)
                except FileNotFoundError:  # another process removed the folder or took over at this moment
                    time.sleep(0.01)
        except BaseException:
            with suppress(OSError):
                part.unlink()  # a folder that holds it cannot be removed
            self._remove_folders()
            raise
        finally:
            with suppress(OSError):
                part.unlink()
        self._looked = _now()
        self._beats = threading.Thread(target=self._beat, name="owner", daemon=True)
        self._beats.start()

    def _try(self, own: Owner, part: Path, saved: Callable[[], int]) -> int:
        """The number that this process has become the owner with, 0 where another one was faster."""
        part.write_text("")
        number = newest(self.folder)
        before, age = None, 0.0
        if number:
            before = read(self.folder, number)
            age = self._wait_for_death(before, number, part)
        newest_saved = saved()
        own = replace(own, saved=newest_saved, idle=_idle(own, before, newest_saved))
        part.write_text(json.dumps(asdict(own)))
        if not _link(part, path(self.folder, number + 1)):
            return 0
        self.owner = own
        if before is not None and not before.ended:
            self._takes_over = f"takes over {self.folder} from {before}, which died; its last sign was {age:.0f} s ago"
        return number + 1

    def _wait_for_death(self, owner: Owner, number: int, part: Path) -> float:
        """Return the age of the owner's sign once the owner is known to be gone. Raises UserError when it lives."""
        first, waits = None, False
        while True:
            os.utime(part)
            sign, now = _touched(path(self.folder, number)), part.stat().st_mtime
            first = sign if first is None else first
            alive = living.lives(owner, now - sign)
            if alive is False:
                return now - sign
            if alive or sign > first:
                job = f" (scancel {owner.job})" if owner.job else f" (kill {owner.pid}, on {owner.host})"
                raise UserError(
                    f"--out {self.folder}: belongs to a run that goes on: {owner}, last sign of life {max(0.0, now - sign):.0f} s "
                    f"ago; wait for its end, stop it{job}, or choose another directory"
                )
            if not waits:
                waits = True
                self._say(
                    f"{self.folder} belongs to {owner}; waits up to {living.DEAD_SECONDS - (now - sign):.0f} s for a sign of life"
                )
            time.sleep(min(1.0, BEAT_SECONDS / 5))

    def _make_folders(self) -> None:
        missing = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._made = self._made or missing

    def _remove_folders(self) -> None:
        """Remove the folders that this claim made, as far as they are empty."""
        with suppress(OSError):
            for folder in self._made:
                folder.rmdir()

    def _beat(self) -> None:
        while not self._end.wait(BEAT_SECONDS) and not self._lost:
            with suppress(OSError):  # the next sign may pass
                self._look()
                os.utime(path(self.folder, self._number))

    def _look(self) -> None:
        """Note when another process has become the owner."""
        number = newest(self.folder)
        if number > self._number:
            self._lost = "another process"
            self._lost = str(read(self.folder, number))
        self._looked = _now()

    def check(self) -> None:
        """Raise UserError when this process is the owner no more; call it before anything is written."""
        if not self._number:
            return
        if _now() - self._looked > 2 * BEAT_SECONDS:  # the process was suspended, or its disk hangs
            with suppress(OSError):
                self._look()
        if self._lost:
            raise UserError(
                f"{self.folder}: now belongs to {self._lost}, since this process gave no sign of life for long; it writes no more"
            )

    def started(self, info: object) -> None:
        """The first files of the run are about to be written: earlier owners' files go."""
        self.check()
        self._writes = True
        if self._takes_over:  # said here, since a configuration may be refused before
            self._say(self._takes_over)
        if self._number:
            former = [path(self.folder, number) for number in _numbers(self.folder) if number < self._number]
            for file in (*former, *self.folder.glob(".owner-*")):  # of starts that were killed; a living one writes its own again
                with suppress(OSError):  # another user's
                    file.unlink(missing_ok=True)

    def round(self, record: object) -> None:
        self.check()

    def ended(self, status: str) -> None: ...

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the directory: as it was where nothing was written, otherwise with a file that says that its owner has ended."""
        self._end.set()
        if not self._number:
            return
        if self._beats is not None:
            self._beats.join()
        file = path(self.folder, self._number)
        with suppress(OSError):  # a full disk
            if self._lost:
                return
            if self._writes:
                part = self.folder / f".owner-{self.owner.id}"
                part.write_text(json.dumps(asdict(replace(self.owner, ended=True))))
                part.replace(file)
            else:
                file.unlink()
                self._remove_folders()
        self._number = 0


def path(folder: Path, number: int) -> Path:
    """The file of an owner."""
    return folder / f"owner-{number:06d}.json"


def newest(folder: Path) -> int:
    """The number of the owner of a directory, 0 for none."""
    return max(_numbers(folder), default=0)


def read(folder: Path, number: int) -> Owner:
    """An owner; of a file that cannot be understood, one of whom nothing is known. Raises FileNotFoundError."""
    try:
        facts: dict[str, Any] = json.loads(path(folder, number).read_bytes())
        values = {field.name: facts[field.name] for field in fields(Owner) if field.name in facts}
        fit = all(type(value) is type(getattr(Owner(), name)) for name, value in values.items())
        return Owner(**values) if fit else Owner()
    except (ValueError, TypeError):  # half written, where there are no hard links
        return Owner()


def _idle(own: Owner, before: Owner | None, saved: int) -> int:
    """How many starts of this job in a row have saved no new round."""
    if before is None or (before.job, before.saved) != (own.job, saved) or not before.restarts < own.restarts:
        return 0
    return before.idle + 1


def _numbers(folder: Path) -> list[int]:
    return [int(match[1]) for file in folder.iterdir() if (match := NAME.fullmatch(file.name))]


def _link(part: Path, file: Path) -> bool:
    """Give a written file its name unless that is taken. Returns whether it was free."""
    try:
        os.link(part, file)
        return True
    except FileExistsError:
        return part.stat().st_nlink == 2  # NFS may do it and say that it was done before
    except FileNotFoundError:
        raise
    except OSError:  # a file system without hard links
        try:
            with file.open("x") as new:
                new.write(part.read_text())
            return True
        except FileExistsError:
            return False


def _touched(file: Path) -> float:
    """When a file was touched last; opened, since NFS asks its server then."""
    opened = os.open(file, os.O_RDONLY)
    try:
        return os.fstat(opened).st_mtime
    finally:
        os.close(opened)


def _now() -> float:
    """Seconds, those in which this machine or process slept included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
