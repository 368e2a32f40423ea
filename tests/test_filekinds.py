"""The kind of a file by its first bytes; text and unknown bytes have no kind."""

import bz2
import gzip
import lzma
import pickle
from pathlib import Path

import pytest

from flora_hpc.filekinds import HDF5, HEAD_BYTES, KINDS, TAR, elsewhere, kind, kind_of

HEADS = [  # as programs write them, with the first words of their kind's name
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a", "a pointer of Git LFS"),
    (b"\xef\xbb\xbf\n <HTML>", "a web page"),
    (b"\x89HDF\r\n\x1a\n" + bytes(20), "an HDF5 file"),
    (b"PK\x03\x04\x14\0", "a zip archive"),
    (b"a" * 257 + b"ustar\00000", "a tar archive"),
    (gzip.compress(b"x", mtime=0), "compressed with gzip"),
    (bz2.compress(b"x"), "compressed with bzip2"),
    (lzma.compress(b"x"), "compressed with xz"),
    (b"\x28\xb5\x2f\xfdrest", "compressed with zstd"),
    (b"7z\xbc\xaf\x27\x1c\0\4", "a 7z archive"),
    (b"Rar!\x1a\x07\1\0", "a RAR archive"),
    (b"PAR1\x15\x04\x15\x10", "a Parquet file"),
    (b"ARROW1\0\0\xff\xff", "an Arrow file"),
    (b"\x93NUMPY\1\0v\0{'descr'", "a NumPy .npy file"),
    (pickle.dumps({"a": 1}, 4), "a Python pickle"),
    (b"MATLAB 5.0 MAT-file, Platform: GLNXA64", "a MATLAB 5 file"),
    (b"CDF\x02\0\0\0\0", "a netCDF 3 file"),
    (b"\x0e\x03\x13\x01\0\x10", "an HDF4 file"),
    (b"SQLite format 3\0\x10\0", "an SQLite database"),
    (b"%PDF-1.7\n%", "a PDF document"),
    (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a PNG image"),
    (b"\xff\xd8\xff\xe0\0\x10JFIF", "a JPEG image"),
    ("image,caption".encode("utf-16"), "text in UTF-16"),
    (b"GGUF\3\0\0\0", "a GGUF file"),
    (b"\x1c\0\0\0TFL3", "a TensorFlow Lite model"),
    (b"\x08\x07\x12\x07pytorch", "an ONNX or Core ML model"),
    (b"\x82\xaatext_model", "a msgpack file"),
    (bytes(HEAD_BYTES), "zeros at its beginning"),
]


@pytest.mark.parametrize(("head", "name"), HEADS, ids=[name for _, name in HEADS])
def test_kinds(head: bytes, name: str) -> None:
    kind = kind_of(head)
    assert kind is not None
    assert kind.name.startswith(name)


def test_every_kind_has_been_tried() -> None:
    assert {kind_of(head) for head, _ in HEADS} == {kind for _, kind in KINDS}
    assert len(HEADS) == len(KINDS)


def test_archives_are_what_something_must_be_taken_from() -> None:
    words = ["zip", "tar", "gzip", "bzip2", "xz", "zstd", "7z", "RAR"]
    assert {kind.name for _, kind in KINDS if kind.is_archive} == {
        kind.name for _, kind in KINDS if set(words) & set(kind.name.split())
    }


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"image,caption\n",
        "Bäume, très".encode(),
        b"{}",
        b"\x89not HDF5",
        b"par1,image,caption\n",
        b"PAR1\timage\tcaption\n",
        b"%pdf_id,image\n",
        b"%PDF,image\n",
        b"bzh_id,image\nBZh",
        b"BZh3,image\n",
        b"ggml_score,image,caption\n",
        b"GGUF,image\n",
        b"sqlite format 3,image\n",
        b"cat,TFL3,image\n",
        b"MATLAB 5.0,image\n",
        "\u3042\u3044\u3046,image\n".encode("shift_jis"),
    ],
)
def test_what_first_bytes_do_not_tell(head: bytes) -> None:
    assert kind_of(head) is None


def test_a_sentence_ends_with_the_cure_where_there_is_one(tmp_path: Path) -> None:
    assert (str(TAR), str(HDF5)) == ("a tar archive; unpack it", "an HDF5 file")
    assert kind(tmp_path / "nowhere") is None


def test_paths_of_other_machines() -> None:
    assert str(elsewhere("C:\\data\\a.h5")).startswith("a path of Windows; write it as")
    assert str(elsewhere(Path("https://example.org/x.pt"))).startswith("an address; files must be here")
    assert [elsewhere(path) for path in ("data/a:b/c", "/x", "a.h5", "12:00/x")] == [None] * 4
