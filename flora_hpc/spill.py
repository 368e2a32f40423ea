"""A file for HDF5 whose writes never fail: HDF5 crashes, at the exit of the process at the latest, when it cannot write the rest.

run.h5 is let go of in another way (`records.hdf5file`), since HDF5 marks a file for SWMR readers only where it opens the file
itself. That way copies the whole file into memory, and packed data may be larger than that.
"""

import io
import os
from pathlib import Path


class Spill(io.RawIOBase):
    """A new file at `path`, for `h5py.File(spill, "w")`. What its disk does not take stays in memory, and `error` says why.

    After the first error nothing more is written to the disk: the file there stays as a kill would leave it. HDF5 can go on, read
    back what it wrote, and close. So whoever writes calls `check` after each step.
    """

    def __init__(self, path: Path) -> None:
        self.error: OSError | None = None
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        self._at = 0
        self._kept: list[tuple[int, bytes]] = []  # offset, bytes: little, since whoever writes stops soon

    def check(self) -> None:
        """Raise the OSError that a write ended with."""
        if self.error is not None:
            raise self.error

    def sync(self) -> None:
        """Return when all is on the disk; some file systems say only then that they are full. Raises OSError."""
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
        before = (0, self._at, os.fstat(self._file).st_size if whence == os.SEEK_END else 0)[whence]
        self._at = before + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: "memoryview[int]") -> int:  # type: ignore[override]
        """Fill all of `buffer`; there are zeros where nothing was written."""
        view = memoryview(buffer).cast("B")
        data = os.pread(self._file, len(view), self._at)
        view[:] = data + bytes(len(view) - len(data))
        for at, kept in self._kept:
            first, last = max(at, self._at), min(at + len(kept), self._at + len(view))
            if first < last:
                view[first - self._at : last - self._at] = kept[first - at : last - at]
        self._at += len(view)
        return len(view)

    def write(self, buffer: "memoryview[int]") -> int:  # type: ignore[override]
        left = memoryview(buffer).cast("B")
        length = len(left)
        while left and self.error is None:
            try:
                written = os.pwrite(self._file, left, self._at)
            except OSError as error:
                self.error = error
            else:
                left, self._at = left[written:], self._at + written
        if left:
            self._kept.append((self._at, bytes(left)))
            self._at += len(left)
        return length

    def truncate(self, size: int | None = None) -> int:
        size = self._at if size is None else size
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
