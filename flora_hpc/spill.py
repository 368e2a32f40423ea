"""A file for HDF5 whose writes never fail: after a failed write HDF5 crashes, at the latest when the process exits.

run.h5 needs another solution (`records.hdf5file`), since HDF5 marks a file for SWMR readers only when HDF5 itself opens the file.
That solution copies the whole file into memory, and packed data may be larger than the memory.
"""

import io
import os
from pathlib import Path


class Spill(io.RawIOBase):
    """A new file at `path`, for `h5py.File(spill, "w")`. Bytes that the disk refuses stay in memory; `error` is the first error.

    After the first error nothing more is written to the disk: the file stays as after a kill. HDF5 can continue, read its own
    writes, and close the file. So the caller must call `check` after each step.
    """

    def __init__(self, path: Path) -> None:
        self.error: OSError | None = None
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        self._position = 0
        self._in_memory: list[tuple[int, bytes]] = []  # offset, bytes: few, since the caller stops soon

    def check(self) -> None:
        """Raise the first OSError of a write."""
        if self.error is not None:
            raise self.error

    def sync(self) -> None:
        """Return when all bytes are on the disk; some file systems report only then that they are full. Raises OSError."""
        if self.error is None:
            try:
                os.fsync(self._file)
            except OSError as error:
                self.error = error
        self.check()

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = (0, self._position, os.fstat(self._file).st_size if whence == os.SEEK_END else 0)[whence]
        self._position = origin + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: "memoryview[int]") -> int:  # type: ignore[override]
        """Fill all of `buffer`, with zeros where nothing was written.

        file on disk       ##########------------
        parts in memory    ..........####..##....     replace the bytes of the disk
        """
        view, position = memoryview(buffer).cast("B"), self._position
        data = os.pread(self._file, len(view), position)
        view[:] = data + bytes(len(view) - len(data))
        for offset, part in self._in_memory:
            first, last = max(offset, position), min(offset + len(part), position + len(view))
            if first < last:
                view[first - position : last - position] = part[first - offset : last - offset]
        self._position += len(view)
        return len(view)

    def write(self, buffer: "memoryview[int]") -> int:  # type: ignore[override]
        rest = memoryview(buffer).cast("B")
        length = len(rest)
        while rest and self.error is None:
            try:
                num_written = os.pwrite(self._file, rest, self._position)
            except OSError as error:
                self.error = error
            else:
                rest, self._position = rest[num_written:], self._position + num_written
        if rest:
            self._in_memory.append((self._position, bytes(rest)))
            self._position += len(rest)
        return length

    def truncate(self, size: int | None = None) -> int:
        size = self._position if size is None else size
        if self.error is None:
            try:
                os.ftruncate(self._file, size)
            except OSError as error:
                self.error = error
        return size

    def close(self) -> None:
        if not self.closed:
            os.close(self._file)
        super().close()
