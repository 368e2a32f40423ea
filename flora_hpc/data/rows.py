"""A table of all images: client, row, part, label and path of each image."""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flora_hpc.data.holdings import Holdings, Partition
from flora_hpc.data.images import Column, Dataset, Ints
from flora_hpc.errors import UserError, reason

MOST_ROWS = 10_000_000  # of a table where clients draw their own images
NOBODY = -1


@dataclass(frozen=True)
class Table:
    """A row for each image of each client, then images of no client: training, validation, test. Columns are (num_rows,)."""

    client: Ints  # NOBODY for images that no client holds
    row: Ints  # number of the image in the dataset
    split: Column  # train, validation or test
    label: Ints
    classes: Sequence[str]  # names by label
    place: Column | None  # the dataset's column `path`, if it has one


def check(path: Path, replace: bool = False) -> None:
    """Refuse a path that cannot become a table, or that exists unless `replace`, before any long work."""
    if path.suffix.lower() not in (".npz", ".csv"):
        raise UserError(f"--rows: {path} is neither a .npz nor a .csv file; give one of these")
    if not path.parent.is_dir():
        raise UserError(f"--rows: there is no folder {path.parent}; create it first")
    if path.exists() and not replace:
        raise UserError(f"--rows: {path} exists already; give another name, or --replace")


def table(dataset: Dataset, holdings: Holdings, num_clients: int | None = None) -> Table:
    """Make the table of the first `num_clients` clients, by default of all. A client's images keep their order.

    Raises UserError where clients that draw their own images would make more than `MOST_ROWS` rows.
    """
    num_clients = min(num_clients or holdings.num_clients, holdings.num_clients)
    if not isinstance(holdings, Partition):
        _check_size(holdings, num_clients)  # before memory grows with the number of clients
    clients = np.arange(num_clients)
    examples = [holdings.examples(client) for client in clients.tolist()]
    of_clients = np.concatenate([*examples, np.zeros(0, np.int64)])
    unassigned = np.setdiff1d(dataset.train, of_clients) if len(clients) == holdings.num_clients else np.zeros(0, np.int64)
    parts = {"train": np.concatenate([of_clients, unassigned]), "validation": dataset.validation, "test": dataset.test}
    rows = np.concatenate(list(parts.values()))
    client = np.full(len(rows), NOBODY, np.int64)
    client[: len(of_clients)] = np.repeat(clients, list(map(len, examples)))
    split = np.repeat(list(parts), list(map(len, parts.values())))
    read = dataset.images.columns.get("path")
    return Table(client, rows, split, dataset.images.labels[rows], dataset.class_names, None if read is None else read()[rows])


def _check_size(holdings: Holdings, num_clients: int) -> None:
    """Refuse a table that would get more than `MOST_ROWS` rows, by the mean of the first 1000 clients."""
    mean = float(holdings.sizes(np.arange(min(num_clients, 1000))).mean())
    if num_clients * mean > MOST_ROWS:
        raise UserError(
            f"--rows: {num_clients:,} clients draw {num_clients * mean:,.0f} images, and at most {MOST_ROWS:,} rows are written; "
            f"write the first {int(MOST_ROWS // mean):,} with --clients {int(MOST_ROWS // mean)}"
        )


def write(path: Path, table: Table) -> None:
    """Write the table as .npz (NumPy) or .csv, whole or not at all. Raises UserError when writing fails."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if path.suffix.lower() == ".npz":
            _write_npz(part, table)
        else:
            _write_csv(part, table)
        part.replace(path)
    except OSError as error:
        raise UserError(f"--rows: {path} cannot be written ({reason(error)})") from None
    finally:
        part.unlink(missing_ok=True)


def _write_npz(path: Path, table: Table) -> None:
    columns = {name: getattr(table, name) for name in ("client", "row", "split", "label")}
    columns["classes"] = np.array(table.classes, str)
    if table.place is not None:
        columns["path"] = table.place.astype(str)
    with path.open("wb") as file:  # given a name, NumPy would add a suffix
        np.savez_compressed(file, **columns)


def _write_csv(path: Path, table: Table) -> None:
    """Write a CSV file; file names that are not UTF-8 keep their bytes."""
    names = np.array(table.classes, object)[table.label]
    places = np.full(len(table.row), "", object) if table.place is None else table.place
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["client", "row", "split", "label", "class", "path"])
        columns = (table.client, table.row, table.split, table.label, names, places)
        writer.writerows(zip(*(column.tolist() for column in columns), strict=True))
