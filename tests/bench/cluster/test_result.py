import copy
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flora_hpc.bench.cluster import curve, result
from flora_hpc.bench.cluster.compare import compare as comparison
from flora_hpc.cli import _fom
from flora_hpc.cli._bench_compare import show
from flora_hpc.errors import UserError
from tests.bench.cluster.whole import whole


def changed(**changes: Any) -> str:
    return json.dumps(whole() | changes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no JSON, or only a part of it; copy it again"),
        ("[1]", "is no result of `flora-hpc bench cluster`"),
        ('{"schema": 1, "bench": "step"}', "is no result of `flora-hpc bench cluster`"),
        (changed(result_schema=2), "has version 2 of the format, and this program reads 1"),
        (changed(topology=[]), "is damaged: topology: "),
        (changed(number={}), "is damaged: number.value is missing"),
        (changed(curve=[]), "is damaged: curve: "),
        (changed(valid=False, culprit=None), "is damaged: culprit: "),
        (changed(**{"class": {"name": "T"}}), "is damaged: class.version is missing; copy it again"),
        (
            changed(number=whole()["number"] | {"value": 6.1}),
            "is damaged: number.value is 6.1, but the rounds of the largest size give 6",
        ),
    ],
)
def test_files_of_others_are_read_with_care(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(UserError) as error:
        result.read(tmp_path)
    assert f"{tmp_path / 'result.json'}: {said}" in str(error.value)


def keys(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every key and entry inside a value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (*path, key)
        yield from keys(inner, (*path, key))


READ = (
    "result_schema",
    "class",
    "valid",
    "number",
    "curve",
    "phases",
    "topology",
    "host",
    "time",
    "commit",
    "versions",
    "settings",
)
STRANGE = (None, True, 0, 1e300, float("inf"), "text", "\ud800", [], {"a": 1}, 10**400)


def test_each_key_deleted_and_replaced_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is refused in one sentence, or it is compared: never another error."""
    monkeypatch.setattr(curve, "RESAMPLES", 10)  # 2,000 take most of the time
    file, good, numbers = tmp_path / "result.json", whole(), []
    good |= {"curve": good["curve"][1:], "versions": {"torch": "2"}, "phases": {"train": good["phases"]["train"]}}  # alike ones
    for path in keys({key: good[key] for key in READ}):
        for value in ("deleted", *STRANGE):
            bad = copy.deepcopy(good)
            place = bad
            for key in path[:-1]:
                place = place[key]
            if value == "deleted":
                del place[path[-1]]
            else:
                place[path[-1]] = value
            file.write_text(json.dumps(bad))
            try:
                both = {"head": 1} | comparison([("a", good), ("b", result.read(file))])
                json.dumps(both, allow_nan=False)
                show(Console(file=io.StringIO()), both)
            except UserError as error:
                numbers.append(str(error))
    assert sum("is damaged" in text for text in numbers) > 200
    assert {"\n" in text for text in numbers} == {False}


def test_an_invalid_result_has_no_number(tmp_path: Path) -> None:
    invalid = whole() | {"valid": False, "culprit": "rank 1", "number": None, "curve": []}
    result.write(tmp_path, invalid)
    assert result.read(tmp_path) == invalid
    assert _fom.of_cluster(invalid) == [("valid", "INVALID", "-")]


def test_written_and_read(tmp_path: Path) -> None:
    result.write(tmp_path, whole())
    assert result.read(tmp_path) == result.read(tmp_path / "result.json") == whole()
    with pytest.raises(UserError, match="cannot be read"):
        result.read(tmp_path / "none.json")
