import io

import pytest
from PIL import Image

from flora_hpc.data import kinds
from flora_hpc.data.kinds import image_format, no_decoder, unknown
from flora_hpc.filekinds import HEAD_BYTES

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def start(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), (9, 80, 200)).save(buffer, form)
    return buffer.getvalue()[:HEAD_BYTES]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "DDS", "QOI"])
def test_what_pillow_writes_is_known_by_its_first_bytes(form: str) -> None:
    try:
        first = start(form)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {form}")
    assert image_format(first) == form
    assert no_decoder(form) is None


@pytest.mark.parametrize("first", [HEIC, b"\0\0\0\x24ftypmif1", b"\0\0\0\x18ftyphevc"])
def test_heic(first: bytes) -> None:
    assert image_format(first) == "HEIF"


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"BM",
        b"BMW and other cars, a list of the images",
        b"P1: a note",
        b"RIFF\0\0\0\0WAVE",
        b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
        b"%PDF-1.7",
        b"PK\x03\x04",
        b"<html>",
        b"\0\0\1\0\0\0 Thumbs",
    ],
)
def test_other_files_are_no_images(first: bytes) -> None:
    assert image_format(first) is None


def test_a_missing_decoder_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    assert no_decoder("HEIF") == "HEIF images, for which no decoder is installed (pip install pillow-heif)"
    assert unknown(HEIC) == "it is one of the HEIF images, for which no decoder is installed (pip install pillow-heif)"
    monkeypatch.setattr(kinds.features, "check", lambda name: False)
    assert no_decoder("WEBP") == "WEBP images, for which no decoder is installed (install a newer Pillow)"


def test_what_nobody_knows() -> None:
    assert (unknown(b""), unknown(b"text")) == ("it is empty", "it is no image that can be decoded")


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
            "it is a pointer of Git LFS, not the file itself; run git lfs",
        ),
        (b"\n<!DOCTYPE html><title>404", "it is a web page or XML, perhaps a server's message of an error; download the file"),
        (bytes(600), "it is zeros at its beginning"),
        (b"\x89PNG\r\n\x1a\n, and no more", "it is no image that can be decoded"),
    ],
)
def test_another_kind_of_file_is_named_with_its_cure(raw: bytes, why: str) -> None:
    assert unknown(raw).startswith(why)
