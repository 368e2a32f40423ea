"""Clients come from a table: `partition: {name: file, path: clients.csv}`."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from flora_hpc.config import Config
from flora_hpc.configfile import load_values
from flora_hpc.data import holdings
from flora_hpc.data import rows as tables
from flora_hpc.data.holdings import Holdings, Partition
from flora_hpc.data.images import Dataset, Images, Ints
from flora_hpc.data.partitioners import file
from flora_hpc.errors import UserError
from flora_hpc.identity import of_data, sources
from tests.data.made_images import made

PATHS = np.array(["cat/1.png", "cat/2.png", os.fsdecode(b"cat/\xff.png"), "dog/1.png", "dog, big/2.png", "dog/3.png"], object)
TRAIN, TEST = np.array([0, 1, 2, 4]), np.array([3, 5])
IMAGES = made([0, 0, 0, 1, 1, 1], path=PATHS)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "clients.csv"


def write(table: Path, *lines: str, header: str = "client,row") -> Path:
    table.write_text("\n".join([header, *lines]))
    return table


def make(table: Path, images: Images = IMAGES, train: Ints = TRAIN, test: Ints = TEST, **options: Any) -> Holdings:
    return holdings.make(file.Options(name="file", path=table, **options), images, train, 0, test)


def examples_of(table: Path, **options: Any) -> list[list[int]]:
    made = make(table, **options)
    return [made.examples(client).tolist() for client in range(made.num_clients)]


def refused(table: Path, **options: Any) -> str:
    """The message about a table, without the key and the path at its beginning."""
    with pytest.raises(UserError) as error:
        make(table, **options)
    start = f"partition.path: {table}"
    assert str(error.value).startswith(start)
    return str(error.value).removeprefix(start).removeprefix(": ").strip()


# --- who is which client, and what it holds


def test_each_client_holds_the_rows_of_its_lines_in_their_order(table: Path) -> None:
    made = make(write(table, "1,2", "0,4", "1,0", "0,1"))
    assert isinstance(made, Partition)
    assert (made.num_clients, made.warnings) == (2, ())
    assert examples_of(table) == [[4, 1], [2, 0]]


def test_numbers_are_in_numeric_order(table: Path) -> None:
    assert examples_of(write(table, "10,0", "9,1", "07,2", "7.0,4")) == [[2, 4], [1], [0]]


def test_texts_are_in_the_order_in_which_they_appear(table: Path) -> None:
    assert examples_of(write(table, "ben,0", "10,1", "anna,2", "ben ,4")) == [[0, 4], [1], [2]]


def test_names_may_be_quoted_and_columns_may_stand_in_any_order(table: Path) -> None:
    lines = ['0,"Smith, Ann",x', "1,Ørsted,y", "", '2,"the ""old""\nman",z', '4,"Smith, Ann",w']
    assert examples_of(write(table, *lines, header="row,client,note")) == [[0, 4], [1], [2]]


@pytest.mark.parametrize("sign", ["\t", ";", "|"])
def test_cells_may_be_divided_otherwise(table: Path, sign: str) -> None:
    assert examples_of(write(table, *(f"a{sign}{row}" for row in TRAIN), header=f"client{sign}row")) == [TRAIN.tolist()]


def test_a_file_of_a_spreadsheet(table: Path) -> None:
    table.write_bytes("\ufeffclient;row\r\nJürgen;0\r\nJürgen;1\r\n\r\nzoé;2\r\nzoé;4\r\n".encode())
    assert examples_of(table) == [[0, 1], [2, 4]]


def test_images_by_name(table: Path) -> None:
    lines = ["a,cat/2.png", 'b,"dog, big/2.png"', "a, cat/1.png", "-1,dog/1.png"]
    assert examples_of(write(table, *lines, header="client,image")) == [[1, 0], [4]]


def test_names_of_files_may_have_bytes_that_are_not_utf_8(table: Path) -> None:
    table.write_bytes(b"client,image\na,cat/\xff.png\n")
    assert examples_of(table) == [[2]]


def test_pairs_of_one_image_stay_together(table: Path) -> None:
    """Rows 0, 2 and 3 are captions of one image; row 4, a test image, is another file of the same name."""
    images = made(np.arange(5), path=np.array(["a", "b", "a", "a", "a"], object))
    options: dict[str, Any] = {"images": images, "train": np.arange(4), "test": np.array([4])}
    assert examples_of(write(table, "x,b", "y,a", header="client,image"), **options) == [[1], [0, 2, 3]]


def test_the_seed_changes_nothing(table: Path) -> None:
    options = file.Options(name="file", path=write(table, "a,4", "a,0", "b,2", "a,1"))
    for seed in range(5):
        assert holdings.make(options, IMAGES, TRAIN, seed, TEST).examples(0).tolist() == [4, 0, 1]


# --- what nobody holds


def test_a_warning_says_how_many_belong_to_nobody(table: Path) -> None:
    begins = "training images belong to no client of {}, so nobody trains on them: "
    for lines, num, why in (
        (["a,0", "-1,1"], 3, "2 are not in it, and 1 have the client -1"),
        (["a,0"], 3, "none of them is in it"),
        (["a,0", "-1,1", "-1,2", "-1,4", "-1,5"], 3, "all have the client -1"),
        (["7,0", "-1.0,1", "-1,2"], 3, "1 are not in it, and 2 have the client -1"),
    ):
        (warning,) = make(write(table, *lines)).warnings
        assert warning == f"{num} of 4 {begins.format(table)}{why}"
        assert examples_of(table) == [[0]]


def test_images_that_cannot_be_decoded_are_nobodys(table: Path) -> None:
    """Rows 2 and 5 are neither training nor test images; the file may name them."""
    options: dict[str, Any] = {"train": np.array([0, 1, 4]), "test": np.array([3])}
    assert examples_of(write(table, "a,0", "a,2", "b,1", "b,4", "-1,5"), **options) == [[0], [1, 4]]
    sentence = (
        "line 3: client 'b' has no image: none can be decoded, or the server has them (server_images); mend one, "
        "lower server_images, or take the lines of this client out"
    )
    assert refused(write(table, "a,0", "b,2"), **options) == sentence


# --- what `data inspect --rows` writes


@pytest.mark.parametrize("columns", ["client,row,split,label,class,path", "client,image"])
def test_an_exported_split_is_the_same_again(table: Path, columns: str) -> None:
    dataset = Dataset("pets", ("cat", "dog"), ("cat", "dog"), ("cat", "dog"), IMAGES, TRAIN, TEST)
    first = holdings.make(holdings.PartitionOptions(name="iid", num_clients=2), IMAGES, TRAIN, 3, TEST)
    tables.write(table, tables.table(dataset, first))
    if columns == "client,image":
        lines = table.read_bytes().replace(b"client,row,split,label,class,path", b"client,1,2,3,4,image")
        table.write_bytes(lines)
    again = make(table)
    assert again.warnings == ()
    assert of_data(dataset, again) == of_data(dataset, first)


def test_rows_that_are_other_images_now_are_refused(table: Path) -> None:
    lines = ["a,0,cat/1.png", "a,1,", "a,2,cat/2.png"]
    assert refused(write(table, *lines, header="client,row,path")) == (
        f"line 4: row 2 is {PATHS[2]!a} now, and not 'cat/2.png': the dataset changed; write the file anew, "
        "or take column 'row' out and call column 'path' 'image'"
    )


def test_a_population_cannot_be_read_back(table: Path) -> None:
    assert refused(write(table, "0,1", "0,2", "1,4", "1,1")) == (
        "line 5: row 1 stands in line 2, too; an image belongs to one client at most, so take one of the lines out"
    )


# --- refusals

ROW, IMAGE = "client,row", "client,image"
WRONG = [
    ("who,row", ["a,0"], "the header has no column 'client' (it has who, row); add it"),
    ("Client,row", ["a,0"], "the header has no column 'client'; did you mean 'Client'? (it has Client, row); add it"),
    (
        "client,rows",
        ["a,0"],
        "the header has neither a column 'row' nor a column 'image' (it has client, rows); "
        "add the one that says which image a line is about",
    ),
    ("client,row,image", ["a,0,cat/1.png"], "the header has both columns 'row' and 'image'; take one of them out"),
    ("client,row,client", ["a,0,b"], "the header has the column 'client' twice; give each column a name of its own"),
    ("", [], "is empty; write a header such as client,row, and a line below it for each image"),
    (ROW, [], "has no line below its header; write a line with client and row for each image"),
    (ROW, ["-1,0", "-1,1"], "gives no image to a client, since all are -1; write who holds them"),
    (ROW, ["a,0", ",1"], "line 3 has no client; fill it in, write -1 for nobody, or take the line out"),
    (ROW, ["a,0", '" ",1'], "line 3 has no client; fill it in, write -1 for nobody, or take the line out"),
    (ROW, ["a,0", "a,1,2"], "line 3 has 3 cells, the header 2; put texts with commas in quotes"),
    (ROW, ["a,0", 'b,"1"x'], "line 3 cannot be read (',' expected after '\"'); double the quotes within a quoted text"),
    (ROW, ["a,0", "a,"], "line 3: 'row' is ''; write the image's number in the dataset, 0 or more"),
    (ROW, ["a,0", "a,1.0"], "line 3: 'row' is '1.0'; write the image's number in the dataset, 0 or more"),
    (ROW, ["a,-1"], "line 2: 'row' is '-1'; write the image's number in the dataset, 0 or more"),
    (ROW, ["a,6"], "line 2: there is no row 6, since the dataset has 6 images, 0 to 5; mend it or take the line out"),
    (
        ROW,
        ["a,0", f"a,{10**30}"],
        f"line 3: there is no row {10**30}, since the dataset has 6 images, 0 to 5; mend it or take the line out",
    ),
    (
        ROW,
        ["a,0", "a,5"],
        "line 3: row 5 is a test image, on which no client may train; take the line out, or write -1 as its client",
    ),
    (
        IMAGE,
        ["a,dog/1.png", "a,cat/1.png", "-1,dog/1.png", "b,dog/3.png"],
        "line 2: image dog/1.png is a test image, on which no client may train; take the line out, or write -1 as its client; "
        "so it is in 1 more line",
    ),
    (
        IMAGE,
        ["a,cat/1.png", "b,cat/2.png", "b, cat/1.png"],
        "line 4: image cat/1.png stands in line 2, too; an image belongs to one client at most, so take one of the lines out",
    ),
    (IMAGE, ["a,cat/1.png", "a,"], "line 3: there is no name of an image; mend it or take the line out"),
    (
        IMAGE,
        ["a,/data/cat/2.png"],
        "line 2: the dataset has no image '/data/cat/2.png'; did you mean 'cat/2.png'?; mend it or take the line out",
    ),
    (
        IMAGE,
        ["a,horse.png"],
        "line 2: the dataset has no image 'horse.png'; its images are named such as 'cat/1.png'; mend it or take the line out",
    ),
]


@pytest.mark.parametrize(("header", "lines", "sentence"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_what_is_wrong_is_named_with_its_line_and_a_cure(table: Path, header: str, lines: list[str], sentence: str) -> None:
    assert refused(write(table, *lines, header=header)) == sentence


def test_lines_are_counted_as_editors_count_them(table: Path) -> None:
    message = refused(write(table, '"two\nlines",0', "", ",1"))
    assert message.startswith("line 5 has no client")


def test_files_that_are_not_utf_8(table: Path) -> None:
    table.write_bytes("client,row\nAnn,0\nJürgen,1\n".encode("latin-1"))
    assert refused(table) == "line 3: the client 'J\\udcfcrgen' is not UTF-8; save the file in that encoding"
    table.write_bytes("client,image\na,bär.png\n".encode("latin-1"))
    assert refused(table).startswith("line 2: the dataset has no image 'b\\udce4r.png'; ")
    table.write_bytes("client,row\na,0\n".encode("utf-16"))
    assert refused(table) == "is text in UTF-16; save it in UTF-8; clients come from text in UTF-8"
    table.write_bytes("client,row\na,0\n".encode("utf-16-le"))
    assert refused(table) == "is not UTF-8 (perhaps UTF-16); save the file in that encoding"


def test_files_of_another_kind(table: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", client=[0])
    assert refused(tmp_path / "rows.npz") == "is a zip archive; clients come from text in UTF-8"
    write(table, "a,0")
    with pytest.raises(UserError, match=r"partition\.path: there is no file .*client\.csv; did you mean 'clients\.csv'\?"):
        make(tmp_path / "client.csv")
    with pytest.raises(UserError, match=r"partition\.path: .* is a folder; give a file"):
        make(tmp_path)


def test_a_file_that_cannot_be_read(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    write(table, "a,0")
    monkeypatch.setattr(Path, "open", forbidden)
    assert refused(table) == "cannot be read (Permission denied); make it readable"


def test_images_without_paths(table: Path) -> None:
    message = refused(write(table, "a,x.png", header=IMAGE), images=made(np.zeros(6)))
    assert message == "names images, but those of this dataset have no paths; give their numbers as 'row'"


# --- the configuration


def config(table: Path, **partition: object) -> Config:
    return load_values({"partition": {"name": "file", "path": str(table)} | partition, "cohort": {"size": 2}}, {})[0]


def test_the_number_of_clients_is_that_of_the_file(table: Path) -> None:
    write(table, "a,0", "b,1", "c,2")
    assert make(table, num_clients=3).num_clients == 3
    with pytest.raises(UserError) as error:
        make(table, num_clients=500)
    message = f"partition.num_clients: 500 clients, but {table} has 3; leave it out (null), or set it to 3"
    assert str(error.value) == message


def test_a_round_cannot_have_more_clients_than_the_file(table: Path) -> None:
    """Checking the configuration does not read the file."""
    assert config(table).cohort_fault(2) is None
    fault = "cohort.size: 2 clients a round, but only 1 are registered; lower cohort.size"
    assert config(table).cohort_fault(1) == fault


def test_a_file_is_no_population(table: Path) -> None:
    with pytest.raises(UserError, match=r"partition\.examples_per_client: the file says which .* holds; leave it out"):
        config(table, examples_per_client=3)
    with pytest.raises(ValidationError):
        file.Options(name="file")  # type: ignore[call-arg]


def test_messages_about_what_changed_name_the_file(table: Path) -> None:
    assert sources(config(table))["clients"] == f"partition.name: file, partition.path: {table}, data.name: digits"
