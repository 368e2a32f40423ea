import errno
import io
import os
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flora_hpc.data import decode
from flora_hpc.data.decode import AHEAD, STRETCH, DamagedError, Loader, rgb
from flora_hpc.data.images import Images, Raw
from flora_hpc.errors import UserError

NOISE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


def file(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def pixels(raw: Raw) -> list[list[list[int]]]:
    image = rgb(raw)
    assert image.mode == "RGB"
    return np.asarray(image).tolist()  # type: ignore[no-any-return]


def gray(*levels: int) -> list[list[list[int]]]:
    """One row of gray pixels."""
    return [[[level] * 3 for level in levels]]


# --- image files


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "GIF"])
def test_gray(form: str) -> None:
    assert pixels(file(Image.fromarray(np.array([[0, 7, 255]], np.uint8)), form)) == gray(0, 7, 255)


def test_rgb_stays_as_it_is() -> None:
    colours = np.array([[[1, 2, 3], [250, 0, 9]]], np.uint8)
    assert pixels(file(Image.fromarray(colours), "PNG")) == [[[1, 2, 3], [250, 0, 9]]]


@pytest.mark.parametrize(
    ("transparency", "second"),
    [(None, [200, 100, 50]), (1, [255] * 3), (bytes([0, 255]), [200, 100, 50]), (bytes([255, 128]), [227, 177, 152])],
)
def test_palette_with_and_without_transparency(transparency: Any, second: list[int]) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    options = {} if transparency is None else {"transparency": transparency}
    first = [255] * 3 if transparency == bytes([0, 255]) else [10, 20, 30]
    assert pixels(file(image, "PNG", **options)) == [[first, second]]


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_what_is_transparent_lies_on_white(form: str) -> None:
    """A half transparent pixel on white: (40 * 128 + 255 * 127) / 255 = 147."""
    colours = np.array([[[0, 0, 0, 0], [40, 40, 40, 128], [40, 40, 40, 255], [255, 0, 0, 0]]], np.uint8)
    assert pixels(file(Image.fromarray(colours), form, **({"lossless": True, "exact": True} if form == "WEBP" else {}))) == gray(
        255, 147, 40, 255
    )


def test_gray_with_transparency_lies_on_white() -> None:
    assert pixels(file(Image.fromarray(np.array([[[40, 0], [40, 128], [40, 255]]], np.uint8), "LA"), "PNG")) == gray(255, 147, 40)


def test_a_transparent_gif_lies_on_white() -> None:
    image = Image.new("P", (2, 1), 1)
    image.putpalette([0, 0, 0, 7, 8, 9])
    image.putpixel((0, 0), 0)
    assert pixels(file(image, "GIF", transparency=0)) == [[[255] * 3, [7, 8, 9]]]


@pytest.mark.parametrize(
    ("mode", "levels", "key"), [("L", [0, 9, 255], 9), ("1", [0, 255, 255], 0), ("RGB", [[1, 2, 3], [1, 2, 4]], (1, 2, 3))]
)
def test_one_colour_may_stand_for_transparent(mode: str, levels: list[Any], key: Any) -> None:
    image = Image.fromarray(np.array([levels], np.uint8)).convert(mode)
    seen = [[255] * 3 if level in (key, list(key) if mode == "RGB" else key) else level for level in levels]
    assert pixels(file(image, "PNG", transparency=key)) == [[each if isinstance(each, list) else [each] * 3 for each in seen]]


def png(bits: int, colours: int, row: bytes, width: int, transparent: bytes = b"") -> bytes:
    """A PNG of one row, written by hand where PIL writes none."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, 1, bits, colours, 0, 0, 0)
    key = chunk(b"tRNS", transparent) if transparent else b""
    rows = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + key + rows + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("bits", "row", "key", "seen"),
    [
        (2, 0b00011011, 1, [0, 255, 170, 255]),
        (4, 0x12F0, 2, [17, 255, 255, 0]),
        (16, 0x1234_1235, 0x1234, [255, 0x12]),
    ],
)
def test_a_transparent_level_is_of_the_files_own_depth(bits: int, row: int, key: int, seen: list[int]) -> None:
    """Two levels of 16 bits have the same upper 8 bits; only one of them is transparent."""
    stored = row.to_bytes(len(seen) * bits // 8)
    assert pixels(png(bits, 0, stored, len(seen), struct.pack(">H", key))) == gray(*seen)


def test_a_transparent_colour_of_sixteen_bits() -> None:
    row, key = struct.pack(">6H", 0x1234, 0, 0, 0x2234, 0, 0), struct.pack(">3H", 0x1234, 0, 0)
    assert pixels(png(16, 2, row, 2, key)) == [[[255] * 3, [0x22, 0, 0]]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_an_opaque_image_keeps_every_bit(mode: str) -> None:
    """All 256 levels with an alpha of 255."""
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB").convert(mode)
    np.testing.assert_array_equal(np.asarray(rgb(file(image, "PNG"))), np.asarray(image.convert("RGB")))


# --- as it was held: EXIF orientation

CORNERS = np.array([[10, 60], [110, 160], [210, 255]], np.uint8)  # upright: 2 wide, 3 high
STORED = {  # orientation -> how the upright image lies in the file, from the standard's "row 0 is ..., column 0 is ..."
    1: CORNERS,
    2: CORNERS[:, ::-1],  # row 0 top, column 0 right
    3: CORNERS[::-1, ::-1],  # bottom, right
    4: CORNERS[::-1],  # bottom, left
    5: CORNERS.T,  # left, top
    6: np.rot90(CORNERS),  # right, top
    7: CORNERS[::-1, ::-1].T,  # right, bottom
    8: np.rot90(CORNERS, -1),  # left, bottom
}


def turned(orientation: int, form: str, mode: str = "RGB", **options: Any) -> bytes:
    """The pixels that a camera in this orientation stores for upright corners, each 8 pixels wide."""
    blocks = np.kron(STORED[orientation], np.ones((8, 8), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    return file(Image.fromarray(blocks).convert(mode), form, exif=exif, **options)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(("form", "options"), [("JPEG", {"quality": 95}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})])
def test_a_picture_stands_upright(orientation: int, form: str, options: dict[str, Any]) -> None:
    levels = np.asarray(rgb(turned(orientation, form, **options)))[4::8, 4::8, 0]
    np.testing.assert_allclose(levels, CORNERS, atol=3)


def test_a_transparent_picture_and_one_of_sixteen_bits_stand_upright() -> None:
    assert rgb(turned(6, "PNG", "RGBA")).size == (16, 24)
    exif = Image.Exif()
    exif[0x0112] = 8
    levels = np.arange(6, dtype=np.uint16).reshape(2, 3) * 256
    upright = np.rot90(np.arange(6).reshape(2, 3))  # what a turn by 270 degrees clockwise makes of it
    np.testing.assert_array_equal(np.asarray(rgb(file(Image.fromarray(levels), "PNG", exif=exif)))[:, :, 0], upright)


def test_xmp_may_say_how_a_picture_was_held() -> None:
    about = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    assert rgb(file(Image.new("RGB", (4, 2)), "JPEG", xmp=about)).size == (2, 4)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # a test makes errors of them
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0broken", b"II*\0\x08\0\0\0\xff\xff"])
def test_broken_exif_says_nothing(exif: bytes) -> None:
    assert rgb(file(Image.new("RGB", (4, 2)), "JPEG", exif=exif)).size == (4, 2)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_says_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert rgb(file(Image.new("RGB", (4, 2)), "PNG", exif=exif)).size == (4, 2)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM"])
def test_upright_opaque_pixels_are_what_pil_decodes(form: str) -> None:
    """The same bits as PIL's conversion, without orientation and transparency."""
    stored = file(Image.fromarray(NOISE), form)
    expected = Image.open(io.BytesIO(stored)).convert("RGB")
    np.testing.assert_array_equal(np.asarray(rgb(stored)), np.asarray(expected))


@pytest.mark.parametrize("form", ["GIF", "PNG", "TIFF", "WEBP"])
def test_the_first_of_several_frames_is_taken(form: str) -> None:
    first, second = Image.new("RGB", (8, 8), (250, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 250))
    stored = file(first, form, save_all=True, append_images=[second], **({"lossless": True} if form == "WEBP" else {}))
    assert pixels(stored)[0][0] == [250, 0, 0]


def test_one_bit_is_black_and_white() -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert pixels(file(image, "PNG")) == gray(0, 255)


@pytest.mark.parametrize(
    ("ink", "expected"), [((0, 0, 0, 0), (255, 255, 255)), ((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 255), (0, 0, 0))]
)
def test_cmyk_jpeg(ink: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """No ink is white; magenta and yellow are red; black is black."""
    loaded = pixels(file(Image.new("CMYK", (8, 8), ink), "JPEG", quality=100))
    np.testing.assert_allclose(loaded, np.broadcast_to(expected, (8, 8, 3)), atol=2)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_gray_keeps_its_upper_eight(form: str) -> None:
    """255 / 65535 is black, not white; 0x1234 becomes 0x12."""
    levels = np.array([[0, 255, 256, 0x1234, 0x8000, 0xFFFF]], np.uint16)
    assert pixels(file(Image.fromarray(levels), form)) == gray(0, 0, 1, 0x12, 0x80, 0xFF)


def test_sixteen_bit_rgb_png_keeps_its_upper_eight() -> None:
    assert pixels(png(16, 2, struct.pack(">3H", 0x1234, 0x00FF, 0xFF00), 1)) == [[[0x12, 0x00, 0xFF]]]


# --- arrays


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1)])
def test_gray_arrays(shape: tuple[int, ...]) -> None:
    assert pixels(np.array([0, 7, 255], np.uint8).reshape(shape)) == gray(0, 7, 255)


def test_colour_arrays() -> None:
    assert pixels(np.array([[[1, 2, 3], [250, 0, 9]]], np.uint8)) == [[[1, 2, 3], [250, 0, 9]]]


def test_arrays_of_five_channels_are_damaged() -> None:
    with pytest.raises(DamagedError, match=r"\(1, 1, 5\)"):
        rgb(np.zeros((2, 2, 5), np.uint8))


# --- damage


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_files(form: str, share: float) -> None:
    whole = file(Image.fromarray(NOISE), form)
    assert rgb(whole).size == (32, 32)
    with pytest.raises(DamagedError):
        rgb(whole[: int(share * len(whole))])


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "TIFF", "BMP"])
def test_whatever_is_wrong_it_is_told_as_damage(form: str) -> None:
    """Files with some wrong bytes decode or raise DamagedError; no exception of PIL gets through."""
    whole, rng, num_damaged = file(Image.fromarray(NOISE), form), np.random.default_rng(1), 0
    for _ in range(200):
        wrong = bytearray(whole)
        for place in rng.integers(0, 100, 4):
            wrong[place] = rng.integers(0, 256)
        try:
            rgb(bytes(wrong))
        except DamagedError:
            num_damaged += 1
    assert num_damaged > 20


def test_nothing_at_all() -> None:
    with pytest.raises(DamagedError, match=r"^it is empty$"):
        rgb(b"")


def test_a_text() -> None:
    with pytest.raises(DamagedError, match=r"^it is no image that can be decoded$"):
        rgb(b"404: not found")
    with pytest.raises(DamagedError, match=r"^it is a web page or XML, .*; download the file itself$"):
        rgb(b"<html>404: not found</html>")


def test_a_file_that_could_not_be_read() -> None:
    with pytest.raises(DamagedError, match=r"^\[Errno 13\] Permission denied: 'a\.jpg'$"):
        rgb(PermissionError(13, "Permission denied", "a.jpg"))


def test_floats_have_no_known_range() -> None:
    with pytest.raises(DamagedError, match=r"32-bit numbers \(mode F\)"):
        rgb(file(Image.fromarray(np.array([[0.5]], np.float32)), "TIFF"))


def test_a_decompression_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DamagedError, match="decompression bomb"):
        rgb(file(Image.new("L", (20, 20)), "PNG"))


def test_a_large_image_is_decoded_without_a_remark() -> None:
    """Between its limit and twice the limit, PIL warns. Runs in another process, where warnings are not errors."""
    code = (
        "import io; from PIL import Image; from flora_hpc.data.decode import rgb\n"
        "buffer = io.BytesIO(); Image.new('L', (15, 10)).save(buffer, 'PNG'); Image.MAX_IMAGE_PIXELS = 100\n"
        "print(rgb(buffer.getvalue()).size)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("(15, 10)\n", "")


def test_decoding_leaves_the_processes_warnings_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The filters stay the same during decoding, too, since all threads share them."""
    before, seen = list(warnings.filters), []
    original = Image.open

    def watched(*arguments: Any) -> Any:
        seen.append(list(warnings.filters))
        return original(*arguments)

    monkeypatch.setattr(Image, "open", watched)
    rgb(file(Image.new("L", (1, 1)), "PNG"))
    assert seen == [before]


# --- many images


def numbered(count: int, damaged: Sequence[int] = ()) -> Images:
    """Image i is one pixel of gray i."""

    def raw(rows: Sequence[int]) -> list[Raw]:
        return [b"" if row in damaged else np.full((1, 1), row, np.uint8) for row in rows]

    return Images(np.zeros(count, np.int64), raw, str)


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy()).float()


def level(image: torch.Tensor | DamagedError) -> float:
    assert isinstance(image, torch.Tensor)
    return float(image[0, 0, 0])


def test_decode_keeps_the_order_and_tells_damage_in_place() -> None:
    first, second, third = decode.decode(numbered(10, damaged=[3]), [7, 3, 1])
    assert isinstance(second, DamagedError)
    assert [image.getpixel((0, 0))[0] for image in (first, third)] == [7, 1]  # type: ignore[union-attr, index]


def test_blocks_come_in_order_with_damage_in_its_place() -> None:
    loader = Loader(numbered(100, damaged=[21, 40]), tensor, num_threads=4)
    blocks = [list(range(start, start + 10))[::-1] for start in range(0, 100, 10)]
    loaded = list(loader.blocks(blocks))
    loader.close()
    assert [rows for rows, _ in loaded] == blocks
    for rows, tensors in loaded:
        for row, one in zip(rows, tensors, strict=True):
            if row in (21, 40):
                assert isinstance(one, DamagedError)
            else:
                assert level(one) == row


def test_no_blocks() -> None:
    loader = Loader(numbered(1), tensor, 1)
    assert list(loader.blocks([])) == []
    loader.close()


def test_images_are_decoded_in_several_threads_at_once() -> None:
    """Each of three threads waits for the other two at the first image of its part."""
    together = threading.Barrier(3, timeout=30)
    stretches = range(0, 3 * STRETCH, STRETCH)

    def preprocess(image: Image.Image) -> torch.Tensor:
        if level(tensor(image)) in stretches:
            together.wait()
        return tensor(image)

    loader, rows = Loader(numbered(3 * STRETCH), preprocess, num_threads=3), list(range(3 * STRETCH))
    [(_, loaded)] = list(loader.blocks([rows]))
    loader.close()
    assert [level(one) for one in loaded] == rows


def test_only_some_blocks_are_read_ahead() -> None:
    """The number of blocks read ahead is limited: the block in use, and the pending blocks of one image for two threads."""
    read: list[int] = []
    images = numbered(50)

    def raw(rows: Sequence[int]) -> list[Raw]:
        read.extend(rows)
        return images.raw(rows)

    loader = Loader(Images(images.labels, raw, str), tensor, 2)
    blocks = loader.blocks([[i] for i in range(50)])
    next(blocks)
    loader.close()
    assert set(read) <= set(range(2 * AHEAD + 1))
    assert 0 in read


def test_closing_gives_up_what_is_under_way() -> None:
    started, go_on, decoded = threading.Event(), threading.Event(), []

    def preprocess(image: Image.Image) -> torch.Tensor:
        started.set()
        go_on.wait(30)
        decoded.append(1)
        return tensor(image)

    loader = Loader(numbered(200), preprocess, num_threads=1)
    blocks = loader.blocks([list(range(50)), list(range(50, 100)), list(range(100, 150)), list(range(150, 200))])
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(next, blocks)
        assert started.wait(30)
        closing = pool.submit(loader.close)
        while not loader._pool._shutdown:
            time.sleep(0.001)
        go_on.set()
        closing.result(30)
        assert isinstance(waiting.exception(30), CancelledError)
    assert len(decoded) == STRETCH, "only the stretch under way is finished"


def test_mistakes_of_a_preprocessing_are_not_taken_for_damage() -> None:
    def preprocess(image: Image.Image) -> torch.Tensor:
        raise RuntimeError("a bug")

    loader = Loader(numbered(1), preprocess, 1)
    with pytest.raises(RuntimeError, match="a bug"):
        list(loader.blocks([[0]]))
    loader.close()


@pytest.mark.parametrize("shape", [(1, 2000, 3), (0, 5, 3), (2000, 1)])
def test_what_no_preprocessing_can_make_a_square_of(shape: tuple[int, ...]) -> None:
    """A thread-like image 224 pixels wide would be 448,000 pixels long."""
    with pytest.raises(DamagedError):
        rgb(np.zeros(shape, np.uint8))
    rgb(np.zeros((2, 2000, 3), np.uint8))


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EMFILE])
def test_what_cannot_be_read_now_is_no_damage(number: int) -> None:
    """A later run may be able to read it, so it must not be stored as damaged."""
    images = Images(np.zeros(1, np.int64), lambda rows: [OSError(number, os.strerror(number))], lambda row: "folder/a.png")
    with pytest.raises(UserError, match=r"folder/a\.png cannot be read now \(.*\); look after the file system, try again"):
        decode.decode(images, [0])


def test_what_is_not_there_is_damage() -> None:
    images = Images(np.zeros(1, np.int64), lambda rows: [OSError(errno.ENOENT, "No such file")], lambda row: "folder/a.png")
    assert "No such file" in str(decode.decode(images, [0])[0])


def test_a_thread_that_decodes_brings_no_team_of_its_own() -> None:
    seen: list[int] = []

    def preprocess(image: Image.Image) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return tensor(image)

    before = torch.get_num_threads()
    loader = Loader(numbered(2), preprocess, num_threads=2)
    list(loader.blocks([[0, 1]]))
    loader.close()
    assert seen == [1, 1]
    assert torch.get_num_threads() == before
