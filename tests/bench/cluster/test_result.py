import json
from pathlib import Path
from typing import Any

import pytest

from flora_hpc.bench.cluster import result
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
        (changed(topology=[]), "is damaged: topology is missing or of a wrong kind"),
        (changed(number={}), "is damaged: number, curve and phases is missing or of a wrong kind"),
        (changed(curve=[{"units": "many"}]), "is damaged: number, curve and phases is missing"),
        (changed(**{"class": {"name": "T"}}), "is damaged: class.version, class.digest, class.scaling, class.fraction are missing"),
    ],
)
def test_files_of_others_are_read_with_care(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(UserError) as error:
        result.read(tmp_path)
    assert f"{tmp_path / 'result.json'}: {said}" in str(error.value)


def test_written_and_read(tmp_path: Path) -> None:
    result.write(tmp_path, whole())
    assert result.read(tmp_path) == result.read(tmp_path / "result.json") == whole()
    with pytest.raises(UserError, match="cannot be read"):
        result.read(tmp_path / "none.json")
