"""Standard output and standard error that never end a run: not by a closed pipe, a full disk or a missing character."""

import codecs
import io
import os
import re
import select
import sys
import unicodedata
from contextlib import suppress
from typing import Any

from flora_hpc.errors import reason

LABELS = {"stdout": "standard output", "stderr": "standard error"}
NEAREST = {"→": "->", "←": "<-", "±": "+-", "ß": "ss", "ẞ": "SS"} | dict(
    zip("ıµμ×·•–—−‘’“”■▁▂▃▄▅▆▇█", "iuux.*---''\"\"#_.-=+*##", strict=True)  # noqa: RUF001 -- these characters are meant
)
BLOCKS, BRAILLE = range(0x2580, 0x25A0), range(0x2800, 0x2900)  # code points
LATIN = re.compile(r"LATIN (SMALL|CAPITAL) (?:LETTER|LIGATURE) ([A-Z]{1,2})(?: WITH .+)?")  # Unicode's names, such as that of ø
LINES = {"HORIZONTAL": "-", "VERTICAL": "|"}  # by the last word of Unicode's names of lines


class ReaderGoneError(Exception):
    """The reader of standard output is gone, and the command does nothing but print."""


class Screen(io.TextIOWrapper):
    """A text stream whose writes never fail. It drops or replaces what cannot be written, and keeps the reason."""

    def __init__(self, name: str, stream: io.TextIOWrapper) -> None:
        """`name` is stdout or stderr; `stream` is the former stream of that name."""
        self._label, self._replaced, self.raw = LABELS[name], False, Raw(stream.buffer)
        self._stream = stream  # a reference, since a deleted stream closes its file
        handler = f"flora_hpc.{name}"
        codecs.register_error(handler, self._replace)
        binary: Any = self.raw if stream.write_through else io.BufferedWriter(self.raw)  # no buffer under `python -u`
        super().__init__(
            binary,
            encoding=stream.encoding,
            errors=handler,
            newline="\n",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )

    def _replace(self, error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        self._replaced = True
        return "".join(map(nearest, error.object[error.start : error.end])), error.end

    @property
    def loss(self) -> str:
        """A sentence: output that was dropped or replaced, and why; empty for none."""
        parts = [f"lost ({self.raw.why})"] if self.raw.why else []
        parts += [f"has characters replaced that {self.encoding} lacks"] if self._replaced else []
        return f"{self._label}: {', '.join(parts)}" if parts else ""


class Raw(io.RawIOBase):
    """The byte stream below a screen. A failed write is not repeated, but the next write is tried: the disk may have room again."""

    def __init__(self, buffer: Any) -> None:
        self._raw: Any = getattr(buffer, "raw", buffer)
        self.why, self.needs_reader = "", False
        self.reader_gone = self.beside_work = False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self._raw.fileno())

    def isatty(self) -> bool:
        return bool(self._raw.isatty())

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while len(rest):
                written = self._raw.write(rest)
                if written is None:  # a launcher made the pipe non-blocking, and the pipe is full
                    select.select([], [self.fileno()], [])
                rest = rest[written or 0 :]
        except (OSError, ValueError) as error:  # ValueError: the file was closed
            first, self.why = not self.why, self.why or reason(error)
            self.reader_gone = self.reader_gone or isinstance(error, BrokenPipeError)
            if first and self.needs_reader and self.reader_gone:
                raise ReaderGoneError from None
        return size


def nearest(character: str) -> str:
    """The ASCII replacement of a character, mostly of the same width; '?' where there is none."""
    if character in NEAREST:
        return NEAREST[character]
    code, name = ord(character), unicodedata.name(character, "")
    if code in BLOCKS or code in BRAILLE:
        return "#" if code in BLOCKS else "."
    if name.startswith("BOX DRAWINGS"):
        return next((mark for word, mark in LINES.items() if name.endswith(word) and " AND " not in name), "+")
    if letter := LATIN.fullmatch(name):
        return letter[2].lower() if letter[1] == "SMALL" else letter[2]
    return unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode() or "?"


def protect() -> None:
    """Replace standard output and standard error by screens, until the process ends."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: otherwise the next opened file, such as run.h5, would get this number and all output
            os.open(os.devnull, os.O_RDWR)
    for name in LABELS:
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115 -- None when the stream is closed
        if isinstance(stream, io.TextIOWrapper) and not isinstance(stream, Screen):
            with suppress(OSError):
                stream.flush()
            stream = Screen(name, stream)
        setattr(sys, name, stream)


def needs_reader() -> None:
    """Let this command exit silently when the reader of standard output is gone: the command does nothing but print."""
    if isinstance(sys.stdout, Screen):
        sys.stdout.raw.needs_reader = True


def beside_work() -> None:
    """Let this command succeed although its output was lost: the command's work is done, and the output only reports it."""
    if isinstance(sys.stdout, Screen):
        sys.stdout.raw.beside_work = True


def unprinted() -> str:
    """Why output was lost; empty when nothing was lost, when its reader is gone, and after `beside_work`."""
    if not isinstance(sys.stdout, Screen):
        return ""
    sys.stdout.flush()
    return "" if sys.stdout.raw.reader_gone or sys.stdout.raw.beside_work else sys.stdout.raw.why


def for_programs() -> None:
    """Print UTF-8 without replacements from here on, for programs as readers. File names keep bytes that are not UTF-8."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")


def loss() -> str:
    """A sentence: lost or replaced output of this process, and why; empty when there is none."""
    return "; ".join(stream.loss for stream in (sys.stdout, sys.stderr) if isinstance(stream, Screen) and stream.loss)
