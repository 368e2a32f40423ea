"""Opens an HDF5 file for reading, also while its writer has it open, or after its writer was killed.

A writer (SWMR) marks the superblock as open, and removes the mark when it closes the file. HDF5 refuses a marked file, or, in its
SWMR mode, tries a damaged block for hours. So HDF5 gets the bytes of the file without the mark; the file itself stays as it is. A
block that is just being written then fails at once, and the caller tries again.

    byte        0          8        11     12    28         36    44        48
    superblock  signature  version  flags  ...   file size  ...   checksum
    for HDF5    same       same     0      same  larger     same  computed anew

HDF5 has calls for both, H5Pset_metadata_read_attempts and H5Fclear (h5clear's), but h5py (3.16) offers neither: no name in
h5py.h5p, h5py.h5f and their classes refers to them.
"""

import io
import os
from pathlib import Path
from typing import BinaryIO

import h5py

SIGNATURE = b"\x89HDF\r\n\x1a\n"
FLAGS, SIZE, CHECKED, LENGTH = (
    11,
    28,
    44,
    48,
)  # bytes: offset of the flags, offset of the file size, length under the checksum, whole length

GROWTH = 2**30  # bytes that a writer may add while the file is read
GUESSED = 512  # bytes that HDF5 reads of a block of unknown length; no other read goes beyond the end of a whole file


class Unmarked(io.RawIOBase):
    """Reads `file` with `head` in place of its first bytes, and with `size` as its length in bytes.

    With that length HDF5 does not see that a file was cut off, so a read of missing bytes raises OSError here.
    """

    def __init__(self, file: BinaryIO, head: bytes, size: int) -> None:
        self._file, self._head, self._size, self._at = file, head, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset if whence == os.SEEK_SET else self._at + offset if whence == os.SEEK_CUR else self._size + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: "memoryview[int]") -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        data = os.pread(self._file.fileno(), len(view), self._at)
        if len(data) < len(view) and (len(view) > GUESSED or not data):  # h5py would take missing bytes for zeros
            raise OSError(f"truncated file: nothing after byte {self._at + len(data)}")
        if self._at < len(self._head):
            data = self._head[self._at : self._at + len(data)] + data[max(0, len(self._head) - self._at) :]
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def open_file(path: Path, file: BinaryIO) -> h5py.File:
    """Open `file`, which lies at `path`, with HDF5. Raises what h5py raises, or ValueError, for a damaged file."""
    head = first_block(file)
    if not marked(head):
        return h5py.File(path, "r", locking=False)
    size = os.fstat(file.fileno()).st_size + GROWTH  # a writer notes the size only when it closes
    unmarked = head[:FLAGS] + b"\0" + head[FLAGS + 1 : SIZE] + size.to_bytes(8, "little") + head[SIZE + 8 : CHECKED]
    return h5py.File(Unmarked(file, unmarked + lookup3(unmarked).to_bytes(4, "little"), size), "r")


def is_open(path: Path) -> bool:
    """Whether a file is marked as open: it is being written, or its writer was killed. False for other files."""
    try:
        with path.open("rb") as file:
            return marked(first_block(file))
    except (OSError, ValueError):
        return False


def first_block(file: BinaryIO) -> bytes:
    """The superblock of a file of HDF5 1.10 or later; empty for other files. Raises ValueError when it is damaged."""
    file.seek(0)
    head = file.read(LENGTH)
    if len(head) < LENGTH or not head.startswith(SIGNATURE) or head[8] not in (2, 3):
        return b""
    if lookup3(head[:CHECKED]).to_bytes(4, "little") != head[CHECKED:]:
        raise ValueError("the checksum of its first block is wrong")
    return head


def marked(head: bytes) -> bool:
    """Whether a first block has the mark of a writer."""
    return bool(head) and head[FLAGS] != 0


def end_of(descriptor: int) -> int:
    """The size that a closed file notes; on the disk it may be longer."""
    return int.from_bytes(os.pread(descriptor, 8, SIZE), "little")


def lookup3(data: bytes) -> int:
    """Bob Jenkins' hash of 1 byte or more, 32 bits: the checksum of HDF5's blocks (burtleburtle.net/bob/c/lookup3.c)."""
    mask = 0xFFFFFFFF

    def rotate(x: int, k: int) -> int:
        return (x << k | x >> (32 - k)) & mask

    a = b = c = (0xDEADBEEF + len(data)) & mask
    for start in range(0, len(data), 12):
        if start:
            for k in (4, 6, 8, 16, 19, 4):
                a, c = (a - c) & mask ^ rotate(c, k), (c + b) & mask
                a, b, c = b, c, a  # the next step does the same with rotated names
        x, y, z = (int.from_bytes(data[start + i : start + i + 4], "little") for i in (0, 4, 8))
        a, b, c = (a + x) & mask, (b + y) & mask, (c + z) & mask
    for k in (14, 11, 25, 16, 4, 14, 24):
        c = ((c ^ b) - rotate(b, k)) & mask
        a, b, c = b, c, a
    return b
