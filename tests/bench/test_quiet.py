from typing import Any

import pytest

from flora_hpc.bench import quiet


def row(units: int, low: float, high: float) -> dict[str, Any]:
    return {"units": units, "round_seconds": {"low": low, "high": high}}


def node(host: str, load: float | None, cores: int = 2) -> dict[str, Any]:
    return {"host": host, "load": load, "cores": cores}


def test_a_quiet_machine_has_no_warnings() -> None:
    """A load of exactly half a core a core is quiet, and so is an unknown one."""
    assert quiet.warnings([row(1, 1.0, 1.2)], [node("n0", 1.0), node("n1", None)], "rank") == []


def test_repeats_that_differ_are_named_with_their_size() -> None:
    (text,) = quiet.warnings([row(1, 2.0, 3.0), row(2, 2.0, 2.6), row(4, 1.0, 1.1)], [], "rank")
    assert text == "repeats differ (1 rank 1.5 times, 2 ranks 1.3 times): the machine was busy; measure again when it is quiet"


def test_a_load_before_the_start_is_named_the_busiest_nodes_first() -> None:
    (text,) = quiet.warnings([row(1, 1.0, 1.0)], [node("n0", 1.1), node("n1", 0.1), node("n2", 9.8)], "node")
    assert text.startswith("load before the start: 9.8 on 2 cores of n2, 1.1 on 2 cores of n0: other work took a share")
    (text,) = quiet.loaded([node(f"n{number}", 3.0, cores=1) for number in range(5)])
    assert ", 3.0 on 1 core of n3 and 1 more node: other work" in text


def test_a_system_without_a_load_average(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise OSError

    monkeypatch.setattr(quiet.os, "getloadavg", fails)
    assert quiet.load() is None
