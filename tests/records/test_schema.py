"""The tables of run.h5 say in the file, and in the documents, what `schema` says of them."""

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from flora_hpc.records.hdf5file import Writer
from flora_hpc.records.schema import ATTRIBUTES, COLUMNS, TABLES, Field
from tests.conftest import ROOT
from tests.contracts.known_helpers import run_info

PAGE = (ROOT / "docs" / "run-file.md").read_text(encoding="utf-8")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Writer(tmp_path / "run.h5", run_info()).close("finished")
    return tmp_path / "run.h5"


def as_table(fields: Sequence[Field]) -> str:
    """How run-file.md shows fields."""
    lines = [f"| `{field.name}` | {field.type} | {field.unit or '-'} | {field.meaning} |" for field in fields]
    return "\n".join(["| name | type | unit | meaning |", "| --- | --- | --- | --- |", *lines]) + "\n"


@pytest.mark.parametrize("table", COLUMNS)
def test_every_column_has_a_unit_and_a_description_in_the_file(path: Path, table: str) -> None:
    """In the order of the columns; a name with a unit in it bears that unit."""
    with h5py.File(path) as file:
        told = {name: list(values) for name, values in file[table].attrs.items()}
        assert told["column"] == list(file[table].dtype.names) == list(TABLES[table].names or ())
    assert set(told) == {"column", "unit", "description"}
    for name, unit, description in zip(told["column"], told["unit"], told["description"], strict=True):
        kind = TABLES[table][name].kind
        assert unit == {"seconds": "s", "bytes": "byte"}.get(name.split("_")[-1], "" if kind == "S" else "1"), name
        assert len(description) > 3
        assert "\n" not in description


def test_the_attributes_of_a_run_are_those_that_are_described(path: Path) -> None:
    with h5py.File(path) as file:
        assert {name: kind(value) for name, value in file.attrs.items()} == {field.name: field.type for field in ATTRIBUTES}


def kind(value: object) -> str:
    return "text" if isinstance(value, str | bytes) else str(np.asarray(value).dtype)


@pytest.mark.parametrize("fields", [ATTRIBUTES, *COLUMNS.values()], ids=["attributes", *COLUMNS])
def test_the_document_has_the_same_table(fields: Sequence[Field]) -> None:
    assert as_table(fields) in PAGE
