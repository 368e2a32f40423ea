"""Recognise image formats by the first bytes of a file, and know which of them Pillow can decode here."""

import importlib
import re
from contextlib import suppress

from PIL import Image, features

from flora_hpc.filekinds import HEAD_BYTES, kind_of

with suppress(ImportError):  # HEIF, the format of photos of phones, if a decoder is installed
    importlib.import_module("pillow_heif").register_heif_opener()

FORMATS = {
    name: re.compile(pattern, re.DOTALL)
    for name, pattern in {
        "JPEG": rb"\xff\xd8\xff",
        "PNG": rb"\x89PNG\r\n\x1a\n",
        "GIF": rb"GIF8[79]a",
        "WEBP": rb"RIFF.{4}WEBP",
        "BMP": rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0{3}",  # the size of the second header, since "BM" begins words, too
        "TIFF": rb"II[*+]\0|MM\0[*+]",
        "PPM": rb"P[1-6][\s#]",
        "JPEG2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
        "AVIF": rb".{4}ftypavi[fs]",
        "HEIF": rb".{4}ftyp(he[iv][cmsx]|mif1|msf1)",
        "ICO": rb"\0\0[\x01\x02]\0[^\0]\0",
        "PSD": rb"8BPS\0\x01",
        "DDS": rb"DDS \x7c\0\0\0",
        "QOI": rb"qoif.{8}[\x03\x04][\0\x01]",
    }.items()
}
DECODERS = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}  # parts of Pillow that may be missing
CURES = {"HEIF": "pip install pillow-heif"}


def image_format(start: bytes) -> str | None:
    """The image format of a file that begins with `start`, or None."""
    return next((name for name, begins in FORMATS.items() if begins.match(start)), None)


def no_decoder(name: str) -> str | None:
    """Why images of format `name` cannot be decoded here, with the cure; None if they can."""
    Image.init()
    if name not in Image.OPEN or (name in DECODERS and not features.check(DECODERS[name])):
        return f"{name} images, for which no decoder is installed ({CURES.get(name, 'install a newer Pillow')})"
    return None


def unknown(raw: bytes) -> str:
    """A clause that says what the bytes are which no decoder accepts."""
    if not raw:
        return "it is empty"
    head = raw[:HEAD_BYTES]
    if (name := image_format(head)) is not None:
        missing = no_decoder(name)
        return f"it is one of the {missing}" if missing else "it is no image that can be decoded"
    kind = kind_of(head)
    return "it is no image that can be decoded" if kind is None else f"it is {kind}"
