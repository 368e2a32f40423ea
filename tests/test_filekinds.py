"""First bytes say what a file is; text and unknown bytes stay without a name."""

from pathlib import Path

import pytest

from flora_hpc.filekinds import HDF5, TAR, kind, kind_of


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\x89HDF\r\n\x1a\n" + bytes(20), "an HDF5 file"),
        (b"\x28\xb5\x2f\xfdrest", "compressed with zstd"),
        (b"\xef\xbb\xbf\n <HTML>", "a web page or XML, perhaps a server's message of an error"),
        (b"a" * 257 + b"ustar", "a tar archive"),
        (b"\x82\xaatext_model", "a msgpack file, as Flax writes weights"),
    ],
)
def test_kinds(head: bytes, name: str) -> None:
    found = kind_of(head)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize("head", [b"", b"image,caption\n", "Bäume, très".encode(), b"{}", b"\x89not HDF5"])
def test_what_first_bytes_do_not_tell(head: bytes) -> None:
    assert kind_of(head) is None


def test_a_sentence_ends_with_the_cure_where_there_is_one(tmp_path: Path) -> None:
    assert (str(TAR), str(HDF5)) == ("a tar archive; unpack it", "an HDF5 file")
    assert kind(tmp_path / "nowhere") is None
