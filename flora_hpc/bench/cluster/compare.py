"""Compare results of one class: ratios of client updates a second with intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flora_hpc.bench.cluster.curve import Floats, estimate, medians
from flora_hpc.bench.cluster.result import OF_CLASS
from flora_hpc.errors import UserError

SAID = {"name": "class", "version": "version", "digest": "work", "scaling": "scaling", "fraction": "share of the class"}
SHORTEST = 1e-9  # seconds of a phase that others are divided by: clocks show no less
Result = Mapping[str, Any]


def check(results: Sequence[tuple[str, Result]]) -> None:
    """Raise UserError for results that cannot be compared: invalid ones, and ones of unlike classes."""
    if len(results) < 2:
        raise UserError("bench compare: give two results at least: flora-hpc bench compare A/result.json B/result.json")
    for name, result in results:
        if not result["valid"]:
            raise UserError(f"{name}: is INVALID ({result['culprit']}), and an invalid result has no number; measure it again")
    (first, one), *others = results
    for name, other in others:
        differing = [key for key in OF_CLASS if one["class"][key] != other["class"][key]]
        if differing:
            key = differing[0]
            raise UserError(
                f"{name}: is another benchmark than {first}: {SAID[key]} {other['class'][key]}, not {one['class'][key]}; "
                "compare results of one class, version, scaling and share"
            )


def compare(results: Sequence[tuple[str, Result]]) -> dict[str, Any]:
    """Every result against the first one. A ratio above 1 is faster; its 95 % interval is a bootstrap over rounds of both.

    Raises UserError for results that cannot be compared.
    """
    check(results)
    one = results[0][1]
    return {
        "class": {key: one["class"][key] for key in OF_CLASS},
        "results": [row(name, result, one) for name, result in results],
        "unlike": unlike(results),
    }


def row(name: str, result: Result, one: Result) -> dict[str, Any]:
    """One result, and its ratios to the first one."""
    last, first = result["curve"][-1], one["curve"][-1]
    ratio = rate(last) / rate(first)  # of the rounds that the interval is of
    interval = estimate(ratio, rates(last, f"of {name}") / rates(first, "of the first"))
    same = result is one
    return {
        "result": name,
        "time": result["time"],
        "host": result["host"],
        "nodes": result["topology"]["num_nodes"],
        "ranks": result["topology"]["num_ranks"],
        "number": result["number"],
        "ratio": {"value": 1.0, "low": 1.0, "high": 1.0} if same else interval.__dict__,
        "differs": not same and not interval.low <= 1 <= interval.high,
        "efficiency": last["efficiency"],
        "phase_ratios": {
            phase: values["median"] / one["phases"][phase]["median"]
            for phase, values in result["phases"].items()
            if one["phases"].get(phase, {}).get("median", 0) > SHORTEST
        },
    }


def rounds(size: Mapping[str, Any]) -> list[float]:
    """Seconds of all rounds of one size."""
    return [value for seconds in size["repeat_round_seconds"] for value in seconds]


def rate(size: Mapping[str, Any]) -> float:
    """Client updates a second of one size."""
    return float(size["clients"] / np.median(rounds(size)))


def rates(size: Mapping[str, Any], name: str) -> Floats:
    """Bootstrap samples of client updates a second of one size."""
    samples: Floats = size["clients"] / medians(rounds(size), name)
    return samples


def unlike(results: Sequence[tuple[str, Result]]) -> dict[str, list[str]]:
    """What differs between the machines and programs: what -> its text in each result. Other hosts and times do not count."""
    facts = [
        {
            "processor": result["topology"]["nodes"][0]["cpu"],
            "GPU": result["topology"]["nodes"][0]["gpu"] or "none",
            "backend": result["topology"]["backend"],
            "commit": str(result.get("commit")),
            **{name: str(text) for name, text in result.get("versions", {}).items()},
            **{name: str(text) for name, text in result.get("settings", {}).items()},
        }
        for _, result in results
    ]
    names = dict.fromkeys(name for each in facts for name in each)
    table = {name: [each.get(name, "-") for each in facts] for name in names}
    return {name: texts for name, texts in table.items() if len(set(texts)) > 1}
