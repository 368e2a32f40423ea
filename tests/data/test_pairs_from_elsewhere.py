"""Tables and shards of other tools: unambiguous ones are read, the others give one sentence."""

import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from pydantic import ValidationError

from flora_hpc.data.datasets import pairs
from flora_hpc.data.images import Dataset
from flora_hpc.errors import UserError

CAPTIONS = ("a cat, asleep", "a dog")


def build(path: Path, **options: object) -> Dataset:
    return pairs.build(pairs.Options(name="pairs", path=path, **options))


def mistake(path: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        build(path, **options)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "img").mkdir()
    for name in "ab":
        (tmp_path / "img" / f"{name}.png").write_bytes(name.encode())
    return tmp_path


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        "image;caption\nimg/a.png;a cat, asleep\nimg/b.png;a dog\n",
        '"caption"|"image"\na cat, asleep|img/a.png\na dog|img/b.png\n',
        "image\tn\tcaption\nimg/a.png\t1,5\ta cat, asleep\nimg/b.png\t2\ta dog\n",
        'sep=;\r\nimage;caption\r\nimg\\a.png;a cat, asleep\r\nimg/b.png;"a dog"\r\n',  # as Excel writes it
        '\n\nimage, caption\nimg\\a.png,"a cat, asleep"\n.\\img\\b.png,a dog\n',
        'a;b,image,caption\n1,img/a.png,"a cat, asleep"\n2,img/b.png,a dog\n',
    ],
)
def test_tables_that_can_only_mean_one_thing(folder: Path, text: str) -> None:
    dataset = build(write(folder / "p.csv", text))
    assert dataset.captions == CAPTIONS
    assert dataset.images.raw([0, 1]) == [b"a", b"b"]


def test_lines_are_counted_past_what_stands_above_the_header(folder: Path) -> None:
    path = write(folder / "p.csv", "sep=;\n\nimage;caption\nimg/a.png;x\nimg/b.png\n")
    assert "p.csv: line 5 has 1 cells, the header 2; put texts with semicolons in quotes" in mistake(path)


@pytest.mark.skipif(os.sep != "/", reason="a name cannot hold a backslash")
def test_a_name_with_a_backslash_is_taken_as_it_is_where_there_is_such_a_file(folder: Path) -> None:
    (folder / "img\\a.png").write_bytes(b"other")
    dataset = build(write(folder / "p.csv", "image,caption\nimg\\a.png,x\nimg\\b.png,y\n"))
    assert dataset.images.raw([0, 1]) == [b"other", b"b"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image;n;caption\nimg/a.png;x\n", "line 2 has 2 cells, the header 3; put texts with semicolons in quotes"),
        ("file;text\nimg/a.png;x\n", "line 2: there is no 'image' (it has file, text)"),
        ("image,caption,caption\nimg/a.png,x,y\n", "the header has the column 'caption' twice"),
        ("img/a.png,x\nimg/b.png,y\n", "line 1 must name the columns, such as image,caption, but names a file"),
        ("image,caption\ns3://bucket/a.png,x\n", "line 2: 'image' is 's3://bucket/a.png', an address; images must be files here"),
        (
            "image,caption\nimg/a.png,x\ndata:image/png;base64#AAAA,y\n",
            "line 3: 'image' is 'data:image/png;base64#AAAA', an address",
        ),
        ("image,caption\nC:\\pics\\a.png,x\n", "line 2: 'image' is 'C:\\\\pics\\\\a.png', a path of Windows"),
        ("image,caption\nimg/a\0.png,x\n", "line 2: 'image' holds a NUL character"),
        (f"image,caption\nimg/{'a' * 300}.png,x\n", "line 2: there is no file"),
        ("image,caption\rimg/a.png,x\r", "save it with line feeds"),
        ("image,caption\nimg/a.png,x\n".encode("utf-16"), "is text in UTF-16; save it in UTF-8"),
        ("image,caption\nimg/a.png,x\n".encode("utf-16-le"), "is not UTF-8 (perhaps UTF-16)"),
        (b"PK\x03\x04rest", "is a zip archive"),
        (b"\x1f\x8b\x08rest", "is compressed with gzip; decompress it"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        (b"<html><body>Sign in</body></html>", "is a web page"),
    ],
)
def test_tables_that_mean_nothing(folder: Path, text: str | bytes, expected: str) -> None:
    message = mistake(write(folder / "p.csv", text))
    assert message.startswith(f"data.path: {folder / 'p.csv'}")
    assert expected in message


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (r'{"image": "img/a.png", "caption": "half \udc00"}', "line 1: 'caption' holds '\\udc00', half of a pair of UTF-16"),
        (r'{"image": "img/\ud83d.png", "caption": "x"}', "line 1: 'image' holds '\\ud83d', half of a pair"),
        (r'{"image": "img/a.png", "caption": "x\u0000"}', "line 1: 'caption' holds a NUL character"),
        ('{"image": "img/a.png", "caption": null}', "line 1: 'caption' must be a text, not None"),
        ('{"image": 7, "caption": "x"}', "line 1: 'image' must be a text, not 7"),
        ('{"image": "img/a.png", "caption": ' + str(list(range(999))) + "}", "...; fill it in"),
        ("[" * 100_000, "line 1 is not JSON (its brackets are nested too deeply)"),
        ('{"image": ' + "9" * 5000 + "}", "line 1 is not JSON ("),
        ('{"image": "img/a.png", "caption": "x", "caption": "y"}', "line 1 is not JSON (it has the key 'caption' twice)"),
        ('"half \\ud800"', "line 1 is "),
    ],
)
def test_lines_of_json_that_mean_nothing(folder: Path, row: str, expected: str) -> None:
    message = mistake(write(folder / "p.jsonl", row))
    assert expected in message
    assert len(message) < 500


def test_columns_of_odd_values_do_no_harm(folder: Path) -> None:
    """Numbers beyond int64, lists and texts that no UTF-8 holds."""
    rows = [{"image": f"img/{name}.png", "caption": name, "n": 2**70, "list": [1], "text": "\ud800"} for name in "ab"]
    images = build(write(folder / "p.jsonl", "\n".join(map(json.dumps, rows)))).images
    assert images.column("n", "key").tolist() == [2**70] * 2


def test_paths_that_are_no_tables(folder: Path) -> None:
    (folder / "d.csv").mkdir()
    os.mkfifo(folder / "pipe.csv")
    assert "d.csv is a folder" in mistake(folder / "d.csv")
    assert "pipe.csv is a pipe" in mistake(folder / "pipe.csv")
    assert "is an address" in mistake(Path("https://example.org/p.csv"))
    assert "is an address" in mistake(Path("hf://datasets/x/{000..100}.tar"))
    assert "p.parquet is a Parquet file; pairs come from .csv" in mistake(write(folder / "p.parquet", b"PAR1"))
    assert "there is no" in mistake(folder / ("x" * 300))


def test_an_image_and_its_caption_are_two_columns(folder: Path) -> None:
    with pytest.raises(ValidationError, match=r"data\.caption_column: is the same as data\.image_column"):
        pairs.Options(name="pairs", path=folder, image_column="a", caption_column="a")


# --- shards


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_two_images_of_one_key_are_refused(tmp_path: Path) -> None:
    path = shard(tmp_path / "s.tar", {"a.jpg": b"A", "a.gif": b"B", "a.txt": b"a cat"})
    assert "a has two images, a.jpg and a.gif; give each a key of its own, with its caption" in mistake(path)


def test_members_that_belong_to_no_pair_are_counted(tmp_path: Path) -> None:
    members = {f"{key}.{suffix}": key.encode() for key in "abc" for suffix in ("gif", "txt", "cls", "npy")}
    dataset = pairs.build(pairs.Options(name="pairs", path=shard(tmp_path / "s.tar", members)))
    assert len(dataset.images) == 3
    assert list(dataset.left_out.values()) == [6]
    assert "a member of a shard that is neither an image nor a caption, such as" in next(iter(dataset.left_out))


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        (rb'{"caption": "half \ud800"}', "a: its caption holds '\\ud800', half of a pair"),
        (b'{"caption": 5}', "a has no caption, but 5; add it"),
        (b"[" * 100_000, "a.json is not JSON (its brackets are nested too deeply)"),
        (b'{"caption": "x", "caption": "y"}', "a.json is not JSON (it has the key 'caption' twice)"),
        (b"\xff\xfe", "a.json is not UTF-8"),
    ],
)
def test_members_that_mean_nothing(tmp_path: Path, about: bytes, expected: str) -> None:
    assert expected in mistake(shard(tmp_path / "s.tar", {"a.jpg": b"A", "a.json": about}))


def test_a_damaged_header_does_not_end_a_shard_in_silence(tmp_path: Path) -> None:
    """tarfile takes a broken header for the end, so all samples after it would be lost."""
    path = shard(tmp_path / "s.tar", {f"{key}{end}": b"x" for key in "abc" for end in (".jpg", ".txt")})
    content = bytearray(path.read_bytes())
    content[2 * 1024 + 100 : 2 * 1024 + 110] = b"\xff" * 10  # within the header of the third member
    assert "is not a whole, uncompressed .tar file (its member at byte 2,048 is damaged)" in mistake(write(path, bytes(content)))


def test_shards_of_another_kind(tmp_path: Path) -> None:
    assert "(it is compressed with zstd" in mistake(write(tmp_path / "s.tar", b"\x28\xb5\x2f\xfd"))


def test_a_pattern_of_too_many_shards_ends_soon(tmp_path: Path) -> None:
    assert f"there is no {tmp_path}/s-0.tar" in mistake(tmp_path / "s-{0..999999999}.tar")
    shard(tmp_path / "s-0.tar", {"a.jpg": b"A", "a.txt": b"x"})
    assert f"there is no {tmp_path}/s-1.tar" in mistake(tmp_path / "s-{0..999999999}.tar")
