"""A run for reading: pandas frames, configuration and status of a run directory or its run.h5."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flora_hpc import extras, yamltext
from flora_hpc.errors import UserError
from flora_hpc.records import clientrows, hdf5file, views
from flora_hpc.records import split as split_of
from flora_hpc.records.schema import TABLES, Rows

if TYPE_CHECKING:
    import pandas as pd


class Tables(Mapping[str, Rows]):
    """Tables by name. /clients, which may be larger than the memory, is read when somebody first asks for it."""

    def __init__(self, rows_of: Mapping[str, Rows], read_clients: Callable[[], Rows] | None) -> None:
        self._rows_of, self._read_clients = dict(rows_of), read_clients

    def __getitem__(self, name: str) -> Rows:
        if name == "clients" and self._read_clients is not None and name not in self._rows_of:
            self._rows_of[name] = self._read_clients()
        return self._rows_of[name]

    def loaded(self, name: str) -> Rows | None:
        """A table that has been read already, or None."""
        return self._rows_of.get(name)

    def __iter__(self) -> Iterator[str]:
        yield from self._rows_of
        if self._read_clients is not None and "clients" not in self._rows_of:
            yield "clients"

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """The contents of a run.h5 when it was opened; open the file again to see later rounds.

    `tables` are the structured arrays of the file, `attributes` the facts about the whole run. The rows of /clients are read when
    somebody asks for them. The frames need pandas (`pip install 'flora-hpc[study]'`). Every frame has the columns of
    `records.schema`, so that one program reads runs of all versions: columns that an old file lacks are NaN. Rows of an unfinished
    round are dropped.
    """

    path: Path
    attributes: dict[str, Any]
    tables: Mapping[str, Rows]

    @property
    def status(self) -> str:
        """How the run ended: finished, stopped, interrupted or failed; a killed run stays 'running'."""
        return str(self.attributes["status"])

    @cached_property
    def config(self) -> dict[str, Any]:
        """The whole configuration, every default included, as nested dictionaries."""
        try:
            config: dict[str, Any] = yamltext.parse(self.attributes["config"])
        except yamltext.YamlError as error:
            raise UserError(f"{self.path}: its attribute 'config' is not YAML ({error}); the file is damaged") from None
        return config

    @property
    def num_rounds(self) -> int:
        """Planned rounds of training."""
        return int(self.config["rounds"])

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}: {', '.join(views.headline(self.tables['rounds'], self.status, self.num_rounds))})"

    @cached_property
    def rounds(self) -> "pd.DataFrame":
        """A row a round, 0 being the state before training."""
        return self._frame("rounds")

    @cached_property
    def ranks(self) -> "pd.DataFrame":
        """A row for every rank in every round."""
        return self._frame("ranks")

    @cached_property
    def clients(self) -> "pd.DataFrame":
        """A row for every client that trained in a round."""
        return self._frame("clients")

    @cached_property
    def topology(self) -> "pd.DataFrame":
        """A row for every rank: its host and its device."""
        return self._frame("topology")

    @cached_property
    def split(self) -> "pd.DataFrame | None":
        """Number of examples by client (index) and class (columns), for at most 1,000 clients spread over all of them.

        None for files before schema 4, and where images have captions of their own instead of classes.
        """
        holdings = self.class_counts
        if holdings is None:
            return None
        extras.need("a frame of a run", "pandas", otherwise="; `Run.class_counts` has the same numbers as NumPy arrays")
        import pandas as pd

        return pd.DataFrame(holdings.counts, pd.Index(holdings.clients, name="client"), pd.Index(holdings.classes, name="class"))

    @cached_property
    def class_counts(self) -> split_of.Split | None:
        """The numbers of `split` as NumPy arrays."""
        return split_of.read(self.path)

    def clients_of(self, number: int, columns: Sequence[str] = ()) -> Rows:
        """The rows of /clients of one round, all columns or those of `columns` that the file has; no other row is read."""
        return self.clients_of_rounds(number, number, columns)

    def clients_of_rounds(self, first: int, last: int, columns: Sequence[str] = ()) -> Rows:
        """The same of rounds `first` to `last`."""
        rows = self.tables.loaded("clients") if isinstance(self.tables, Tables) else self.tables.get("clients")
        if rows is None:
            return clientrows.of_rounds(self.path, first, last, columns)
        start, stop = np.searchsorted(rows["round"], [first, last + 1])
        names = [name for name in columns if name in (rows.dtype.names or ())]
        part: Rows = rows[start:stop][names] if names else rows[start:stop]
        return part

    def columns(self, table: str) -> dict[str, Any]:
        """The columns of a table, those of `records.schema` first: NumPy arrays, and lists of texts."""
        if table not in self.tables:
            raise UserError(f"{self.path}: /{table} was not read; flora_hpc.open_run reads all tables, where the file can be seen")
        rows = self.tables[table]
        columns: dict[str, Any] = {name: np.full(len(rows), np.nan) for name in TABLES[table].names or ()}
        for name in rows.dtype.names or ():
            columns[name] = rows[name]
            if rows[name].dtype.kind in "SO":
                columns[name] = [text.decode() if isinstance(text, bytes) else str(text) for text in rows[name]]
        return columns

    def _frame(self, table: str) -> "pd.DataFrame":
        extras.need("a frame of a run", "pandas", otherwise=f"; `Run.tables['{table}']` has the same rows as a NumPy array")
        import pandas as pd  # takes half a second

        columns = self.columns(table)
        return pd.DataFrame(columns, index=range(len(self.tables[table])))


def open_run(path: str | Path, tables: Sequence[str] = tuple(TABLES)) -> Run:
    """Open a run, finished or still being written. `path` is a run directory or its run.h5.

    Its frames need pandas: `pip install 'flora-hpc[study]'`.
    Only `tables` and /rounds are read, and /clients when somebody asks for it: a million of its rows take 85 MB.
    Raises UserError when there is no file, or when the file is damaged, foreign, or of a newer version.
    """
    attributes, rows_of = hdf5file.read(Path(path), [name for name in tables if name != "clients"])
    file, last = hdf5file.locate(Path(path)), int(rows_of["rounds"]["round"].max(initial=-1))
    read_clients = partial(clientrows.of_rounds, file, 0, last) if "clients" in tables else None
    return Run(file, attributes, Tables(rows_of, read_clients))
