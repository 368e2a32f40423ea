"""Identify the kind of a file by its first bytes, whatever its suffix, and the cure where another kind is expected."""

import re
from pathlib import Path
from typing import NamedTuple

HEAD_BYTES = 512  # enough to identify every kind
RESAVE_TEXT = "save it in UTF-8"
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/|data:")  # one slash, since pathlib removes the second
WINDOWS = re.compile(r"[A-Za-z]:[\\/]")


class Kind(NamedTuple):
    """A kind of file. The cure is empty where it depends on the option that names the file."""

    name: str
    cure: str = ""
    is_archive: bool = False  # whether the expected file may be inside

    def __str__(self) -> str:
        """Name and cure, as the end of a sentence."""
        return f"{self.name}; {self.cure}" if self.cure else self.name


HDF5, TAR, ZIP = Kind("an HDF5 file"), Kind("a tar archive", "unpack it", True), Kind("a zip archive", is_archive=True)
POINTER = Kind("a pointer of Git LFS, not the file itself", "run git lfs pull in its repository")
KINDS = [
    (re.compile(begins, re.DOTALL), kind)
    for begins, kind in (
        (rb"version https://git-lfs", POINTER),
        (
            rb"(?i:(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml|!--|error>))",
            Kind("a web page or XML, perhaps a server's message of an error", "download the file itself"),
        ),
        (rb"\x89HDF\r\n\x1a\n", HDF5),
        (rb"PK\x03\x04", ZIP),
        (rb".{257}ustar", TAR),
        (rb"\x1f\x8b", Kind("compressed with gzip", "decompress it with gunzip", True)),
        (rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", Kind("compressed with bzip2", "decompress it with bunzip2", True)),
        (rb"\xfd7zXZ\x00", Kind("compressed with xz", "decompress it with unxz", True)),
        (rb"\x28\xb5\x2f\xfd", Kind("compressed with zstd", "decompress it with unzstd", True)),
        (rb"7z\xbc\xaf\x27\x1c", Kind("a 7z archive", "unpack it", True)),
        (rb"Rar!\x1a", Kind("a RAR archive", "unpack it", True)),
        (rb"PAR1([\x00-\x08\x0e-\x1f]|\Z)", Kind("a Parquet file")),
        (rb"ARROW1\0\0", Kind("an Arrow file")),
        (rb"\x93NUMPY", Kind("a NumPy .npy file")),
        (rb"\x80[\x02-\x05]", Kind("a Python pickle")),
        (rb"MATLAB 5\.0 MAT-file", Kind("a MATLAB 5 file", "save it with -v7.3")),
        (rb"CDF[\x01\x02\x05]", Kind("a netCDF 3 file")),
        (rb"\x0e\x03\x13\x01", Kind("an HDF4 file")),
        (rb"SQLite format 3\0", Kind("an SQLite database")),
        (rb"%PDF-\d", Kind("a PDF document")),
        (rb"\x89PNG\r\n\x1a\n", Kind("a PNG image")),
        (rb"\xff\xd8\xff", Kind("a JPEG image")),
        (rb"\xff\xfe|\xfe\xff", Kind("text in UTF-16", RESAVE_TEXT)),
        (rb"(GGUF|gg(ml|mf|jt)|(lm|fm|tj)gg).{0,3}\0", Kind("a GGUF file")),
        (rb"..\0\0TFL3", Kind("a TensorFlow Lite model")),
        (rb"\x08[\x01-\x14][\x12\x1a\x22\x3a\x42]", Kind("an ONNX or Core ML model")),
        (rb"([\x81-\x8f]|\xde..|\xdf....)([\xa0-\xbf]|\xd9.)[A-Za-z_]{2}", Kind("a msgpack file, as Flax writes weights")),
        (rb"\x00{64}", Kind("zeros at its beginning: its copy broke off", "copy or download it again")),
    )
]


def kind_of(head: bytes) -> Kind | None:
    """The kind of a file whose first HEAD_BYTES are `head`; None for plain text and for unknown kinds."""
    return next((kind for begins, kind in KINDS if begins.match(head)), None)


def elsewhere(path: str | Path) -> str | None:
    """Why a path cannot be a file of this machine, with the cure, in one clause; None for a possible path."""
    text = str(path)
    if WINDOWS.match(text):
        return "a path of Windows; write it as this system has it"
    return "an address; files must be here, so download it first" if ADDRESS.match(text) else None


def kind(path: Path) -> Kind | None:
    """The kind of the file at `path`; None for an unknown kind or an unreadable file."""
    try:
        with path.open("rb") as file:
            return kind_of(file.read(HEAD_BYTES))
    except OSError:
        return None
