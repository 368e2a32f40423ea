"""The file at a path, or why there is none; and what a file is by its first bytes."""

import os
import re
from pathlib import Path

from flora_hpc.errors import UserError, did_you_mean

TAR = "a tar archive"
LONGEST = 512  # bytes that tell a kind
STARTS = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"PK\x03\x04": "a zip archive (as .zip, .npz, .xlsx and PyTorch's .pt are)",
    b"\x1f\x8b": "compressed with gzip; decompress it with gunzip",
    b"BZh": "compressed with bzip2; decompress it with bunzip2",
    b"\xfd7zXZ\x00": "compressed with xz; decompress it with unxz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; decompress it with unzstd",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a": "a RAR archive",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"\x93NUMPY": "a NumPy .npy file",
    b"\x80\x04\x95": "a Python pickle",
    b"\x80\x02": "a Python pickle",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself; fetch the file with git lfs pull",
    b"MATLAB 5.0": "a MATLAB 5 file; save it with -v7.3",
    b"CDF\x01": "a netCDF 3 file",
    b"\x0e\x03\x13\x01": "an HDF4 file",
    b"SQLite format 3": "an SQLite database",
    b"%PDF": "a PDF document",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\xff\xfe": "text in UTF-16; save it in UTF-8",
    b"\xfe\xff": "text in UTF-16; save it in UTF-8",
}
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/|data:")  # pathlib leaves one slash of two
WINDOWS = re.compile(r"[A-Za-z]:[\\/]")


def kind(path: Path) -> str | None:
    """What a file's first bytes say it is; None for plain text and whatever else they do not tell."""
    try:
        with path.open("rb") as file:
            start = file.read(LONGEST)
    except OSError:
        return None
    if start[257:262] == b"ustar":
        return TAR
    if re.match(rb"\s*<(!doctype html|html|head|\?xml|Error>)", start, re.IGNORECASE):
        return "a web page or XML, perhaps a server's message of an error; fetch the file again"
    return next((name for begins, name in STARTS.items() if start.startswith(begins)), None)


def expanded(key: str, path: Path) -> Path:
    """The path without ~. Raises UserError where that stands for nobody."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise UserError(f"{key}: {path} begins with ~ and no known user; write the path out") from None


def file_at(key: str, path: Path, siblings: str = "*") -> Path:
    """The file at `path`, which option `key` gives, ~ expanded; `siblings` is a pattern of names that may be meant.

    Raises UserError where there is none.
    """
    path = expanded(key, path)
    if not os.path.isfile(path):  # noqa: PTH113 -- pathlib raises for names that are too long
        raise UserError(f"{key}: {why_absent(path, siblings)}")
    return path


def why_absent(path: Path, siblings: str = "*") -> str:
    """Why there is no file at a path, in one clause."""
    text = str(path)
    if WINDOWS.match(text):
        return f"there is no file {path}, which is a path of Windows; write it as this system has it"
    if ADDRESS.match(text):
        return f"{text} is an address; data must be files here, so download it first"
    if os.path.isdir(path):  # noqa: PTH112
        return f"{path} is a folder; give a file"
    if os.path.exists(path):  # noqa: PTH110
        return f"{path} is a pipe or a device; give a file"
    nearby = [file.name for file in path.parent.glob(siblings)] if os.path.isdir(path.parent) else []  # noqa: PTH112
    return f"there is no file {path}{did_you_mean(path.name, nearby)}"
