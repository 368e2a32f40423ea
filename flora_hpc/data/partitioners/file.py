"""Clients come from a file: a table (CSV) names the client of each training image.

Column `client` has the name of a client, any text or number, or -1 for no client. Column `row` has the number of an image in the
dataset, from 0: training part, then test part, as `flora-hpc data inspect --rows` writes it. A column `image` may replace it, with
the path of the image as in the dataset's column `path`. Clients are numbered from 0: in numeric order if all names are numbers,
else as they appear. A client holds its images in the order of the lines. Images of no client are not used. Other columns, such as
`device`, may say something of each client.
"""

from pathlib import Path
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from flora_hpc.data.datasets._paths import file_at
from flora_hpc.data.holdings import Partitioner, PartitionOptions
from flora_hpc.data.images import Images, Ints, Origin
from flora_hpc.data.partitioners._clientfile import DIGITS, KEY, NOBODY, ClientFile, by_client, numbered, read
from flora_hpc.data.texts import shown
from flora_hpc.errors import UserError

LEFT_OUT, TEST, UNKNOWN = -1, -2, -3  # keys of images that are not for training


class Options(PartitionOptions):
    """The file."""

    num_clients: int | None = Field(  # type: ignore[assignment]  # the others need a number
        None, ge=1, le=10**12, description="registered clients: those of the file, so leave it out or give the same number"
    )
    path: Path = Field(description="a table (CSV) with a column client, and a column row or image")

    @model_validator(mode="after")
    def _clients_are_those_of_the_file(self) -> Self:
        if self.examples_per_client is not None:
            raise ValueError("partition.examples_per_client: the file says which images each client holds; leave it out")
        return self


def build(options: Options, images: Images) -> Partitioner:
    table = read(file_at(KEY, options.path))
    origin = images.origin or Origin(images, np.arange(len(images)), np.zeros(0, np.int64))
    keys, key_of = _of_rows(table, origin) if table.by == "row" else _of_images(table, images, origin)
    _refuse_second(table, keys)
    numbers = numbered(table.names)
    clients = numbers[table.client_of]
    _refuse_test(table, keys, clients)
    num_clients = int(clients.max()) + 1
    if num_clients == 0:
        raise UserError(f"{KEY}: {table.path} gives no image to a client, since all are -1; write who holds them")
    if options.num_clients not in (None, num_clients):
        raise UserError(
            f"partition.num_clients: {options.num_clients:,} clients, but {table.path} has {num_clients:,}; "
            f"leave it out (null), or set it to {num_clients}"
        )
    is_train = keys >= 0
    owner, line = np.full(len(images), NOBODY), np.full(len(images), len(keys))
    owner[keys[is_train]], line[keys[is_train]] = clients[is_train], np.flatnonzero(is_train)
    owners = owner[key_of]
    _refuse_empty(table, clients, owners, num_clients)

    def split(num_clients: int, rng: np.random.Generator) -> Ints:
        return owners

    def draw(num_drawn: int, rng: np.random.Generator) -> Ints:
        raise AssertionError("the options refuse a population")

    order = np.argsort(line[key_of], kind="stable")
    return Partitioner(
        split,
        draw,
        num_clients=num_clients,
        order=order,
        warnings=_unassigned(table, owners, line[key_of]),
        columns=by_client(table, numbers, num_clients),
    )


def _of_rows(table: ClientFile, origin: Origin) -> tuple[Ints, Ints]:
    """The key of each line, and the key of each training image, for a table with a column `row`.

    Keys of lines (num_lines,) int64 are keys of training images, LEFT_OUT or TEST. Keys of training images are (num_train,) int64.
    """
    num_images = len(origin.images)
    texts = [text.strip() for text in table.images]
    for index, text in enumerate(texts):
        if not (text.isascii() and text.isdigit()):
            raise UserError(f"{table.at(index)}: 'row' is {shown(text)}; write the image's number in the dataset, 0 or more")
    rows = np.array([int(text) if len(text) <= DIGITS else num_images for text in texts], np.int64)
    if len(beyond := np.flatnonzero(rows >= num_images)):
        raise UserError(
            f"{table.at(beyond[0])}: there is no row {shown(texts[beyond[0]])[1:-1]}, since the dataset has {num_images:,} images, "
            f"0 to {num_images - 1}; mend it or take the line out"
        )
    _refuse_moved(table, rows, origin)
    keys = np.full(num_images, LEFT_OUT)
    keys[origin.train], keys[origin.test] = np.arange(len(origin.train)), TEST
    return keys[rows], np.arange(len(origin.train))


def _refuse_moved(table: ClientFile, rows: Ints, origin: Origin) -> None:
    """Refuse rows whose images now have another path than in the table: the dataset changed after the table was written."""
    if not table.places or "path" not in origin.images.columns:
        return
    paths = origin.images.column("path", KEY)[rows].tolist()
    moved = (i for i, (old, new) in enumerate(zip(table.places, paths, strict=True)) if old not in ("", new))
    if (index := next(moved, None)) is not None:
        raise UserError(
            f"{table.at(index)}: row {rows[index]} is {shown(paths[index])} now, and not {shown(table.places[index])}: the dataset "
            "changed; write the file anew, or take column 'row' out and call column 'path' 'image'"
        )


def _of_images(table: ClientFile, images: Images, origin: Origin) -> tuple[Ints, Ints]:
    """The same as `_of_rows`, for a table with a column `image`. In pairs, several images may have one name; they share a key."""
    if "path" not in images.columns:
        raise UserError(f"{KEY}: {table.path} names images, but those of this dataset have no paths; give their numbers as 'row'")
    paths, keys = origin.images.column("path", KEY), dict[str, int]()
    key_of = np.array([keys.setdefault(name, len(keys)) for name in paths[origin.train].tolist()], np.int64)
    line_keys = [keys.get(name, UNKNOWN) for name in table.images]
    if UNKNOWN in line_keys:
        all_keys = dict.fromkeys(paths.tolist(), LEFT_OUT) | dict.fromkeys(paths[origin.test].tolist(), TEST) | keys
        line_keys = [all_keys.get(name, all_keys.get(name.strip(), UNKNOWN)) for name in table.images]  # a table may add spaces
    if UNKNOWN in line_keys:
        index = line_keys.index(UNKNOWN)
        raise UserError(f"{table.at(index)}: {_unknown(table.images[index], paths.tolist())}; mend it or take the line out")
    return np.array(line_keys, np.int64), key_of


def _unknown(name: str, names: list[str]) -> str:
    """Why there is no image `name`, in one clause, with a similar name."""
    if not name.strip():
        return "there is no name of an image"
    last = name.strip().replace("\\", "/").rsplit("/", 1)[-1]
    near = next((candidate for candidate in names if candidate.rsplit("/", 1)[-1] == last), None)
    hint = f"its images are named such as {shown(names[0])}" if near is None else f"did you mean {shown(near)}?"
    return f"the dataset has no image {shown(name)}; {hint}"


def _refuse_second(table: ClientFile, keys: Ints) -> None:
    """Refuse two lines about one training image."""
    order = np.argsort(keys, kind="stable")
    same = (keys[order][1:] == keys[order][:-1]) & (keys[order][1:] >= 0)
    if len(seconds := order[1:][same]):
        index = int(seconds.min())
        first = table.lines[np.argmax(keys == keys[index])]
        raise UserError(
            f"{table.at(index)}: {table.image(index)} stands in line {first}, too; "
            "an image belongs to one client at most, so take one of the lines out"
        )


def _refuse_test(table: ClientFile, keys: Ints, clients: Ints) -> None:
    """Refuse clients that hold test images."""
    if len(wrong := np.flatnonzero((keys == TEST) & (clients != NOBODY))):
        index, more = int(wrong[0]), len(wrong) - 1
        also = f"; so it is in {more:,} more line{'s' * (more > 1)}" if more else ""
        raise UserError(
            f"{table.at(index)}: {table.image(index)} is a test image, on which no client may train; take the line out, or write "
            f"-1 as its client{also}"
        )


def _refuse_empty(table: ClientFile, clients: Ints, owners: Ints, num_clients: int) -> None:
    """Refuse clients whose images are all dropped, or the server's."""
    counts = np.bincount(owners + 1, minlength=num_clients + 1)[1:]
    if len(empty := np.flatnonzero(counts == 0)):
        index = int(np.argmax(clients == empty[0]))
        name = shown(table.names[table.client_of[index]])
        raise UserError(
            f"{table.at(index)}: client {name} has no image: none can be decoded, or the server has them (server_images); "
            "mend one, lower server_images, or take the lines of this client out"
        )


def _unassigned(table: ClientFile, owners: Ints, line: Ints) -> tuple[str, ...]:
    """A warning about training images of no client, if there are any."""
    is_unassigned = owners == NOBODY
    if not (num := int(is_unassigned.sum())):
        return ()
    absent = int((line == len(table.lines))[is_unassigned].sum())
    why = "none of them is in it" if absent == num else "all have the client -1"
    if 0 < absent < num:
        why = f"{absent:,} are not in it, and {num - absent:,} have the client -1"
    return (f"{num:,} of {len(owners):,} training images belong to no client of {table.path}, so nobody trains on them: {why}",)
