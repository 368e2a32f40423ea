"""The last lines of a study."""

from pathlib import Path

import pytest
import typer

from flora_hpc.cli._study_run import tell_end
from flora_hpc.records.study import Point


def test_points_that_fail_for_the_same_reason_are_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    failed = [Point(f"flora-{seed}", status="failed", message="photos holds no images") for seed in range(3)]
    other = Point("fedlc-0", status="failed", message="out of memory")
    with pytest.raises(typer.Exit):
        tell_end([Point("good", status="finished"), *failed, other], Path("out"))
    assert capsys.readouterr().out.splitlines() == [
        "failed: flora-0 and 2 other points: photos holds no images",
        "failed: fedlc-0: out of memory",
        "1 of 5 points finished in out; `flora-hpc study show out` shows the results",
    ]
