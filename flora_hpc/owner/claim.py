"""Claim a run directory: one living process owns it and writes its files.

    owner-000001.json    the first owner, which ended or died
    owner-000002.json    the owner that took over from it: the highest number counts

A process becomes the owner when it creates the next file. Only one process can create it, so no lock is needed. As a heartbeat, the
owner touches its file every few seconds. The file system's clock gives the heartbeat's age, since clocks of two hosts may differ.
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

HEARTBEAT_SECONDS = 5.0
NAME = re.compile(r"owner-(\d+)\.json")


class Claim:
    """The ownership of a run directory, from `take` until the end of the `with` block. It also is the run's first observer.

    `say` prints a sentence: when `take` must wait, and, once the run starts, that it takes over from a dead owner.
    """

    def __init__(self, folder: Path, say: Callable[[str], None] = lambda sentence: None) -> None:
        self.folder, self._say = folder, say
        self.owner = Owner()
        self._number = 0  # of this process's owner file; 0 before `take`
        self._new_folders: list[Path] = []  # created by this claim, the innermost first
        self._writes = False
        self._unwritable = ""  # why no file can be written
        self._takes_over = ""  # a sentence with the former owner, and when it died
        self._new_owner = ""  # the process that has taken over from this one
        self._checked_at = 0.0
        self._end = threading.Event()
        self._heartbeat: threading.Thread | None = None

    def take(self, saved: Callable[[], int] = lambda: -1) -> None:
        """Become the owner, unless this process already is the owner. `saved` returns the newest round with a checkpoint.

        Raises UserError where a living process owns the directory. Where nothing can be written, only `require` raises.
        """
        if self._number or self._unwritable:
            return
        try:
            self._take(saved)
        except OSError as error:
            is_run = (self.folder / "run.h5").exists()
            cure = "make room on its disk, or make it writable" if is_run else "choose a directory that can"
            self._unwritable = f"--out {self.folder}: cannot be written ({reason(error)}); {cure}"

    def require(self) -> None:
        """Raise UserError when `take` failed because nothing can be written in the directory."""
        if self._unwritable:
            raise UserError(self._unwritable)

    def _take(self, saved: Callable[[], int]) -> None:
        process = living.this_process()
        part = self.folder / f".owner-{process.id}"
        try:
            while not self._number:
                self._make_folders()
                try:
                    self._number = self._try(process, part, saved)
                except FileNotFoundError:  # another process removed the folder or took over at this moment
                    time.sleep(0.01)
        except BaseException:
            with suppress(OSError):
                part.unlink()  # first: only an empty folder can be removed
            self._remove_folders()
            raise
        finally:
            with suppress(OSError):
                part.unlink()
        self._checked_at = _now()
        self._heartbeat = threading.Thread(target=self._send_heartbeats, name="owner", daemon=True)
        self._heartbeat.start()

    def _try(self, process: Owner, part: Path, saved: Callable[[], int]) -> int:
        """The number of this process's owner file; 0 where another process was faster."""
        part.write_text("")
        number = newest(self.folder)
        former, age = None, 0.0
        if number:
            former = read(self.folder, number)
            age = self._wait_for_death(former, number, part)
        newest_saved = saved()
        process = replace(process, saved=newest_saved, idle=_count_idle_starts(process, former, newest_saved))
        part.write_text(json.dumps(asdict(process)))
        if not _link(part, path(self.folder, number + 1)):
            return 0
        self.owner = process
        if former is not None and not former.ended:
            self._takes_over = f"takes over {self.folder} from {former}, which died; its last sign was {age:.0f} s ago"
        return number + 1

    def _wait_for_death(self, owner: Owner, number: int, part: Path) -> float:
        """Return the age of the owner's last heartbeat once the owner is dead. Raises UserError when the owner lives."""
        first, waits = None, False
        while True:
            os.utime(part)
            heartbeat, now = _touched(path(self.folder, number)), part.stat().st_mtime
            first = heartbeat if first is None else first
            age = now - heartbeat
            alive = living.lives(owner, age)
            if alive is False:
                return age
            if alive or heartbeat > first:
                job = f" (scancel {owner.job})" if owner.job else f" (kill {owner.pid}, on {owner.host})"
                raise UserError(
                    f"--out {self.folder}: belongs to a run that goes on: {owner}, last sign of life {max(0.0, age):.0f} s "
                    f"ago; wait for its end, stop it{job}, or choose another directory"
                )
            if not waits:
                waits = True
                self._say(f"{self.folder} belongs to {owner}; waits up to {living.DEAD_SECONDS - age:.0f} s for a sign of life")
            time.sleep(min(1.0, HEARTBEAT_SECONDS / 5))

    def _make_folders(self) -> None:
        missing = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._new_folders = self._new_folders or missing

    def _remove_folders(self) -> None:
        """Remove the folders that this claim created, as long as they are empty."""
        with suppress(OSError):
            for folder in self._new_folders:
                folder.rmdir()

    def _send_heartbeats(self) -> None:
        while not self._end.wait(HEARTBEAT_SECONDS) and not self._new_owner:
            with suppress(OSError):  # the next heartbeat may succeed
                self._check_owner()
                os.utime(path(self.folder, self._number))

    def _check_owner(self) -> None:
        """Note when another process has become the owner."""
        number = newest(self.folder)
        if number > self._number:
            self._new_owner = "another process"  # in case the file cannot be read
            self._new_owner = str(read(self.folder, number))
        self._checked_at = _now()

    def check(self) -> None:
        """Raise UserError when this process no longer owns the directory; call it before each write."""
        if not self._number:
            return
        if _now() - self._checked_at > 2 * HEARTBEAT_SECONDS:  # the process was suspended, or its disk hangs
            with suppress(OSError):
                self._check_owner()
        if self._new_owner:
            raise UserError(
                f"{self.folder}: now belongs to {self._new_owner}, since this process gave no sign of life for long; "
                "it writes no more"
            )

    def started(self, info: object) -> None:
        """Remove the files of earlier owners; the run is about to write its first files."""
        self.check()
        self._writes = True
        if self._takes_over:  # printed only now, since the configuration may be refused before
            self._say(self._takes_over)
        if self._number:
            former = [path(self.folder, number) for number in _numbers(self.folder) if number < self._number]
            for file in (*former, *self.folder.glob(".owner-*")):  # left by killed starts; a living start writes its file again
                with suppress(OSError):  # another user's file
                    file.unlink(missing_ok=True)

    def round(self, record: object) -> None:
        self.check()

    def ended(self, status: str) -> None: ...

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *error: object) -> None:
        """Release the directory: mark its owner as ended. Where the run wrote nothing, remove the owner file and new folders."""
        self._end.set()
        if not self._number:
            return
        if self._heartbeat is not None:
            self._heartbeat.join()
        file = path(self.folder, self._number)
        with suppress(OSError):  # a full disk
            if self._new_owner:
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
    """The owner in a file; an unknown owner, `Owner()`, for a file with other content. Raises FileNotFoundError."""
    try:
        content: dict[str, Any] = json.loads(path(folder, number).read_bytes())
        values = {field.name: content[field.name] for field in fields(Owner) if field.name in content}
        fit = all(type(value) is type(getattr(Owner(), name)) for name, value in values.items())
        return Owner(**values) if fit else Owner()
    except (ValueError, TypeError):  # a half-written file, on a file system without hard links
        return Owner()


def living_owner(folder: Path) -> Owner | None:
    """The owner of a directory, unless it is dead. An owner on another host lives as long as its heartbeat is young."""
    try:
        number = newest(folder)
        owner, age = read(folder, number), time.time() - path(folder, number).stat().st_mtime
    except OSError:
        return None
    alive = living.lives(owner, age) if number else False
    return owner if alive or (alive is None and age < living.DEAD_SECONDS) else None


def _count_idle_starts(process: Owner, former: Owner | None, saved: int) -> int:
    """How many starts of this job in a row have saved no new round."""
    if former is None or (former.job, former.saved) != (process.job, saved) or not former.restarts < process.restarts:
        return 0
    return former.idle + 1


def _numbers(folder: Path) -> list[int]:
    return [int(match[1]) for file in folder.iterdir() if (match := NAME.fullmatch(file.name))]


def _link(part: Path, file: Path) -> bool:
    """Give the file `part` the name `file`, unless that name is in use. Returns whether it was free."""
    try:
        os.link(part, file)
        return True
    except FileExistsError:
        return part.stat().st_nlink == 2  # NFS may create the link and yet report that it existed before
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
    """The time of the last touch of a file. The file is opened first, since NFS then asks its server."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        return os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)


def _now() -> float:
    """Seconds since the start of the machine, including the time while the machine or the process was suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
