import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from pydantic import ValidationError

from flora_hpc.data.datasets import pairs
from flora_hpc.data.images import Dataset
from flora_hpc.errors import UserError


def build(path: Path, **options: object) -> Dataset:
    return pairs.build(pairs.Options(name="pairs", path=path, **options))


def mistake(path: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        build(path, **options)
    return str(caught.value)


def table(path: Path, text: str | bytes) -> Path:
    """A file of pairs beside images a.jpg to j.jpg; the content of each image is its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    for letter in "abcdefghij":
        (path.parent / f"{letter}.jpg").write_bytes(f"{letter}.jpg".encode())
    return path


def shard(path: Path, **members: str | bytes) -> Path:
    """A .tar of members; `__` in their names stands for a dot."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name.replace("__", "."))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def said(dataset: Dataset) -> list[tuple[Any, str]]:
    """Every image's bytes and caption."""
    raws = dataset.images.raw(range(len(dataset.images)))
    return [(raw, dataset.captions[label]) for raw, label in zip(raws, dataset.images.labels, strict=True)]


PAIRS = [(b"a.jpg", "a cat"), (b"b.jpg", "a dog"), (b"c.jpg", "a cat")]


# --- tables


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.csv", "image,caption\na.jpg,a cat\nb.jpg,a dog\nc.jpg,a cat\n"),
        ("p.tsv", "caption\timage\r\na cat\ta.jpg\r\na dog\tb.jpg\r\na cat\tc.jpg\r\n"),
        ("p.csv", "image\tcaption\na.jpg\ta cat\nb.jpg\ta dog\nc.jpg\ta cat"),  # as open_clip likes them
        ("p.csv", "\ufeffimage,caption\n\na.jpg, a cat \n b.jpg,a dog\nc.jpg,a cat\n\n"),
        (
            "p.jsonl",
            '\ufeff{"image": "a.jpg", "caption": "a cat"}\n\n'
            '{"image": "b.jpg", "caption": "a dog"}\n{"image": "c.jpg", "caption": "a cat"}',
        ),
    ],
)
def test_tables(tmp_path: Path, name: str, text: str) -> None:
    dataset = build(table(tmp_path / name, text))
    assert said(dataset) == PAIRS
    assert dataset.captions == dataset.class_names == dataset.wordings == ("a cat", "a dog")
    assert dataset.images.labels.tolist() == [0, 1, 0]
    assert dataset.name == "p"


def test_captions_may_hold_anything(tmp_path: Path) -> None:
    """Braces are no template; quotes hold commas, quotes and ends of lines."""
    text = 'image,caption\na.jpg,"a {} {cat}, {{"\nb.jpg,"two\nlines, ""quoted"""\nc.jpg,ç 猫\n'
    assert build(table(tmp_path / "p.csv", text)).captions == ("a {} {cat}, {{", 'two\nlines, "quoted"', "ç 猫")


def test_columns_can_have_other_names_and_images_another_folder(tmp_path: Path) -> None:
    table(tmp_path / "images" / "x.csv", "")
    path = table(tmp_path / "lists" / "p.csv", "filepath,title\na.jpg,a cat\nb.jpg,a dog\n")
    for letter in "abcdefghij":
        (path.parent / f"{letter}.jpg").unlink()
    dataset = build(path, image_column="filepath", caption_column="title", images_root=tmp_path / "images")
    assert said(dataset) == PAIRS[:2]
    assert dataset.images.where(1) == f"{tmp_path}/images/b.jpg (line 3 of p.csv)"


def test_images_may_have_whole_paths(tmp_path: Path) -> None:
    path = table(tmp_path / "p.csv", f"image,caption\n{tmp_path}/a.jpg,a cat\nb.jpg,a dog\n")
    assert said(build(path, images_root=tmp_path)) == PAIRS[:2]


def test_more_columns(tmp_path: Path) -> None:
    images = build(table(tmp_path / "p.csv", "image,client,caption\na.jpg,anna,x\nb.jpg,7,y\n")).images
    assert sorted(images.columns) == ["client", "path"]
    assert images.column("client", "key").tolist() == ["anna", "7"]
    assert images.column("path", "key").tolist() == ["a.jpg", "b.jpg"]


def test_row_numbers_as_pandas_writes_them_are_no_column(tmp_path: Path) -> None:
    dataset = build(table(tmp_path / "p.csv", ",image,caption\n0,a.jpg,a cat\n1,b.jpg,a dog\n2,c.jpg,a cat\n"))
    assert said(dataset) == PAIRS
    assert sorted(dataset.images.columns) == ["path"]


def test_columns_of_json_keep_their_kind(tmp_path: Path) -> None:
    """`list` and `maybe` do not have one plain value on every line."""
    rows = [
        {"image": "a.jpg", "caption": "x", "n": 1, "size": 1, "good": True, "who": "anna", "mixed": 1, "list": [1], "maybe": 1},
        {"image": "b.jpg", "caption": "y", "n": 2, "size": 0.5, "good": False, "who": "bert", "mixed": "b", "list": [2]},
    ]
    images = build(table(tmp_path / "p.jsonl", "\n".join(map(json.dumps, rows)))).images
    assert {name: read().tolist() for name, read in images.columns.items()} == {
        "path": ["a.jpg", "b.jpg"],
        "n": [1, 2],
        "size": [1.0, 0.5],
        "good": [True, False],
        "who": ["anna", "bert"],
        "mixed": ["1", "b"],
    }
    assert images.column("n", "key").dtype == np.int64
    assert images.column("good", "key").dtype == bool


def test_very_long_cells(tmp_path: Path) -> None:
    """csv refuses more than 131,072 characters by default; its setting is restored."""
    import csv

    before = csv.field_size_limit()
    dataset = build(table(tmp_path / "p.csv", f"image,caption,note\na.jpg,x,{'n' * 200_000}\nb.jpg,y,\n"))
    assert len(dataset.images.column("note", "key")[0]) == 200_000
    assert csv.field_size_limit() == before == 131_072


def test_a_missing_image_is_told_in_its_place(tmp_path: Path) -> None:
    dataset = build(table(tmp_path / "p.csv", "image,caption\nz.jpg,x\nb.jpg,y\n"))
    missing, there = dataset.images.raw([0, 1])
    assert isinstance(missing, FileNotFoundError)
    assert there == b"b.jpg"
    assert dataset.images.stamp is not None
    assert dataset.images.stamp()


def test_the_stamp_changes_with_the_table_and_with_an_image(tmp_path: Path) -> None:
    path = table(tmp_path / "p.csv", "image,caption\na.jpg,x\nb.jpg,y\n")
    stamp = build(path).images.stamp
    assert stamp is not None
    stamps = [stamp(), stamp()]
    os.utime(path, ns=(1, 1))
    stamps.append(stamp())
    os.utime(tmp_path / "b.jpg", ns=(1, 1))
    stamps.append(stamp())
    assert [stamps.index(text) for text in stamps] == [0, 0, 2, 3]


# --- the split


def test_test_images_are_drawn_over_all_pairs(tmp_path: Path) -> None:
    """Every caption is a class of one image, so drawing by class would draw none."""
    rows = "".join(f"{letter}.jpg,caption {letter}\n" for letter in "abcdefghij")
    dataset = build(table(tmp_path / "p.csv", "image,caption\n" + rows), test_fraction=0.3)
    assert len(dataset.test) == 3
    assert sorted([*dataset.train, *dataset.test]) == list(range(10))


def test_an_image_with_several_captions_is_not_split(tmp_path: Path) -> None:
    """Of five images with two captions each, two are drawn with both."""
    rows = "".join(f"{letter}.jpg,caption {letter}{i}\n" for i in range(2) for letter in "abcde")
    dataset = build(table(tmp_path / "p.csv", "image,caption\n" + rows), test_fraction=0.4)
    paths = dataset.images.column("path", "key")
    assert len(dataset.test) == 4
    assert set(paths[dataset.test]).isdisjoint(paths[dataset.train])


def test_official_test_pairs_share_the_captions(tmp_path: Path) -> None:
    train = table(tmp_path / "train.csv", "image,caption\na.jpg,a cat\nb.jpg,a dog\n")
    test = table(tmp_path / "test.jsonl", '{"image": "c.jpg", "caption": "an owl"}\n{"image": "d.jpg", "caption": "a cat"}')
    dataset = build(train, test_path=test)
    assert dataset.captions == ("a cat", "a dog", "an owl")
    assert dataset.images.labels.tolist() == [0, 1, 2, 0]
    assert (dataset.train.tolist(), dataset.test.tolist()) == ([0, 1], [2, 3])
    assert dataset.images.where(2) == f"{tmp_path}/c.jpg (line 1 of test.jsonl)"


def test_a_merged_split(tmp_path: Path) -> None:
    text = "image,caption\n" + "".join(f"{letter}.jpg,{letter}\n" for letter in "abcd")
    test = text.replace("a.jpg", "e.jpg").replace("b.jpg", "f.jpg")  # c and d are in both
    dataset = build(table(tmp_path / "p.csv", text), test_path=table(tmp_path / "q.csv", test), split="merged", test_fraction=0.5)
    paths = dataset.images.column("path", "key")
    assert len(set(paths[dataset.test])) == 3
    assert set(paths[dataset.test]).isdisjoint(paths[dataset.train])


def test_a_template_makes_no_sense(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="every image of pairs brings its own caption; leave this out"):
        pairs.Options(name="pairs", path=tmp_path, caption="a photo of {}.")


# --- shards


def test_a_shard(tmp_path: Path) -> None:
    path = shard(
        tmp_path / "s.tar", **{"a__jpg": b"A" * 600, "a__txt": " a cat\n", "x/b__PNG": b"B", "x/b__json": '{"caption": "a dog"}'}
    )
    dataset = build(path)
    assert said(dataset) == [(b"A" * 600, "a cat"), (b"B", "a dog")]
    assert dataset.images.raw([1, 0, 1]) == [b"B", b"A" * 600, b"B"]
    assert dataset.images.where(1) == f"{path}: x/b.PNG"


def test_a_members_key_ends_at_its_first_dot(tmp_path: Path) -> None:
    """Other members of a sample, hidden members and folders are no images."""
    path = tmp_path / "s.tar"
    shard(
        path,
        a__jpg=b"A",
        a__seg__png=b"mask",
        a__txt="x",
        a__cls="3",
        **{"__hidden__jpg": b"no", "v1__0/b__jpg": b"B", "v1__0/b__txt": "y"},
    )
    assert said(build(path)) == [(b"A", "x"), (b"B", "y")]


def test_the_text_of_json_becomes_columns(tmp_path: Path) -> None:
    about = {"caption": "x", "width": 3, "url": "u", "exif": {}}
    path = shard(tmp_path / "s.tar", a__jpg=b"A", a__json=json.dumps(about), b__jpg=b"B", b__json=json.dumps(about | {"width": 4}))
    images = build(path).images
    assert {name: read().tolist() for name, read in images.columns.items()} == {
        "path": ["a.jpg", "b.jpg"],
        "width": [3, 4],
        "url": ["u", "u"],
    }


@pytest.mark.parametrize("given", ["", "s-*.tar", "s-{0..2}.tar", "s-{0,1,2}.tar", "{s,t}-[0-9].tar"])
def test_many_shards(tmp_path: Path, given: str) -> None:
    for i in range(3):
        shard(
            tmp_path / "shards" / f"{'t' if given.startswith('{') and i == 2 else 's'}-{i}.tar",
            a__jpg=f"{i}",
            a__txt=f"caption {i}",
        )
    dataset = build(tmp_path / "shards" / given)
    assert said(dataset) == [(b"0", "caption 0"), (b"1", "caption 1"), (b"2", "caption 2")]
    assert len(dataset.test) == 1  # images of one name in several shards are several images


def test_numbers_of_shards_keep_their_zeros(tmp_path: Path) -> None:
    for i in (9, 10):
        shard(tmp_path / f"s-{i:03}.tar", a__jpg=f"{i}", a__txt="x")
    assert [raw for raw, _ in said(build(tmp_path / "s-{009..010}.tar"))] == [b"9", b"10"]


def test_train_and_test_shards_with_the_same_names_are_other_images(tmp_path: Path) -> None:
    for part in ("train", "test"):
        shard(tmp_path / part / "0.tar", **{f"{key}__{suffix}": f"{key}" for key in "abcde" for suffix in ("jpg", "txt")})
    dataset = build(tmp_path / "train", test_path=tmp_path / "test", split="merged", test_fraction=0.5)
    assert len(dataset.test) == 5
    assert build(tmp_path / "train", test_path=tmp_path / "test").test.tolist() == [5, 6, 7, 8, 9]


def test_a_lost_shard_is_told_in_its_place(tmp_path: Path) -> None:
    for i in range(2):
        shard(tmp_path / f"{i}.tar", a__jpg=f"{i}", a__txt="x", b__jpg=f"b{i}", b__txt="y")
    dataset = build(tmp_path)
    (tmp_path / "0.tar").unlink()
    raws = dataset.images.raw([2, 0, 3, 1])
    assert (raws[0], raws[2]) == (b"1", b"b1")
    assert isinstance(raws[1], FileNotFoundError)
    assert isinstance(raws[3], FileNotFoundError)


# --- mistakes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "image,captoin\na.jpg,x\n",
            "line 2: there is no 'caption'; did you mean 'captoin'? (it has image, captoin); data.image_column",
        ),
        ("image,caption\na.jpg,x\n,y\n", "line 3: 'image' must be a text, not ''; fill it in or take the line out"),
        ('image,caption\na.jpg,"x\ny"\nb.jpg," "\n', "line 4: 'caption' must be a text, not ' '"),
        (b"image,caption\na.jpg,x\nb.jpg,\xe9\n", "line 3 is not UTF-8"),
        ("image,caption\na.jpg,x, y\n", "line 2 has 3 cells, the header 2; put texts with commas in quotes"),
        ('image,caption\na.jpg,x\nb.jpg,"y\nc.jpg,z\n', "line 3 cannot be read (unexpected end of data)"),
        ("image,caption\n", "has no pairs"),
        ("", "has no pairs"),
        ("image,caption\nz.jpg,x\n", "line 2: there is no file"),
    ],
)
def test_wrong_tables(tmp_path: Path, text: str | bytes, expected: str) -> None:
    message = mistake(table(tmp_path / "p.csv", text))
    assert message.startswith(f"data.path: {tmp_path / 'p.csv'}")
    assert expected in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"image": "a.jpg", "caption": "x"}\n{"image"}\n', "line 2 is not JSON (Expecting ':' delimiter"),
        ('["a.jpg", "x"]', 'line 1 is ["a.jpg", "x"]; each line must be an object of its own'),
        ('\n{"image": "a.jpg"}', "line 2: there is no 'caption'"),
        ('{"image": "a.jpg", "caption": ["x", "y"]}', "line 1: 'caption' must be a text, not ['x', 'y']"),
    ],
)
def test_wrong_lines_of_json(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in mistake(table(tmp_path / "p.jsonl", text))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    table(tmp_path / "pairs.csv", "image,caption\na.jpg,x\n")
    assert mistake(tmp_path / "pair.csv") == f"data.path: there is no file {tmp_path / 'pair.csv'}; did you mean 'pairs.csv'?"
    assert "data.path: there is no file" in mistake(tmp_path / "nowhere" / "pairs.csv")
    assert "data.test_path: there is no file" in mistake(tmp_path / "pairs.csv", test_path=tmp_path / "none.csv")
    assert f"data.path: there is no .tar file in {tmp_path}" in mistake(tmp_path)
    assert f"data.path: there is no {tmp_path}/s-*.tar" in mistake(tmp_path / "s-*.tar")


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    assert "p.parquet is of no known kind" in mistake(table(tmp_path / "p.parquet", ""))


def test_a_single_image_cannot_be_split(tmp_path: Path) -> None:
    path = table(tmp_path / "p.csv", "image,caption\na.jpg,x\na.jpg,y\n")
    assert "has a single image" in mistake(path)
    other = table(tmp_path / "q.csv", "image,caption\nb.jpg,x\n")
    (tmp_path / "b.jpg").touch()
    assert len(build(path, test_path=other).test) == 1


def test_one_of_many_shards_is_missing(tmp_path: Path) -> None:
    shard(tmp_path / "s-0.tar", a__jpg=b"A", a__txt="x")
    assert f"there is no {tmp_path}/s-1.tar; give shards" in mistake(tmp_path / "s-{0..1}.tar")


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"a__jpg": b"A"}, "a has no caption; add it as .txt, or to .json as 'caption'"),
        ({"a__jpg": b"A", "a__json": '{"title": "x"}'}, "a has no caption"),
        ({"a__jpg": b"A", "a__txt": " \n"}, "a has no caption"),
        ({"x/a__txt": "x"}, "x/a has no image"),
        ({"a__jpg": b"A", "a__json": "{"}, "a.json is not JSON"),
        ({"a__jpg": b"A", "a__json": "[]"}, "a.json must be an object"),
        ({"a__jpg": b"A", "a__txt": b"\xe9"}, "a.txt is not UTF-8"),
        ({"readme__md": b"A"}, "has no pairs"),
    ],
)
def test_wrong_shards(tmp_path: Path, members: dict[str, str | bytes], expected: str) -> None:
    message = mistake(shard(tmp_path / "s.tar", **members))
    assert message.startswith(f"data.path: {tmp_path / 's.tar'}")
    assert expected in message


def test_a_key_that_is_there_twice(tmp_path: Path) -> None:
    """One image would take the place of the other."""
    path = shard(tmp_path / "s.tar", **{"a__jpg": b"A", "a__txt": "x", "./a__jpg": b"B"})
    assert f"data.path: {path} has ./a.jpg twice; give the samples" in mistake(path)


@pytest.mark.parametrize("keep", [0.5, 0.97])
def test_a_truncated_shard(tmp_path: Path, keep: float) -> None:
    path = shard(tmp_path / "s.tar", a__txt="x", a__jpg=b"A" * 20_000)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * 20_000)])
    assert "is not a whole, uncompressed .tar file" in mistake(path)


def test_a_compressed_shard(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w:gz"):
        pass
    assert "is not a whole, uncompressed .tar file" in mistake(tmp_path / "s.tar")


def test_an_image_by_two_paths_is_one_image(tmp_path: Path) -> None:
    """Otherwise an image could be in both parts."""
    lines = [f"{way}{i}.png,caption {way}{i}" for i in range(10) for way in ("", f"../{tmp_path.name}/")]
    for i in range(10):
        PIL.Image.new("L", (2, 2), i).save(tmp_path / f"{i}.png")
    (tmp_path / "p.csv").write_text("\n".join(["image,caption", *lines]))
    dataset = build(tmp_path / "p.csv", test_fraction=0.3)
    assert not {row // 2 for row in dataset.train.tolist()} & {row // 2 for row in dataset.test.tolist()}


def test_official_parts_must_not_share_an_image(tmp_path: Path) -> None:
    for i in range(3):
        PIL.Image.new("L", (2, 2), i).save(tmp_path / f"{i}.png")
    (tmp_path / "p.csv").write_text("image,caption\n0.png,a\n1.png,b\n")
    (tmp_path / "q.csv").write_text("image,caption\n./1.png,b\n2.png,c\n")
    assert "data.test_path: 1 images are in data.path, too, such as" in mistake(tmp_path / "p.csv", test_path=tmp_path / "q.csv")
