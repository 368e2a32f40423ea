"""What must stand in a result.json for a comparison, as types: every number finite, and where it is divided by, above zero."""

from statistics import median
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

TOLERANCE = 1e-6  # relative, of a number against its rounds: a file that was edited by hand is off by more
Count = Annotated[int, Field(gt=0, lt=2**53)]
Seconds = Annotated[float, Field(ge=1e-9, le=1e9)]  # of a round
Phase = Annotated[float, Field(ge=-1e9, le=1e9)]  # the rest of a round may be a little below zero
Positive = Annotated[float, Field(gt=0)]


class Part(BaseModel):
    """Strict types, since JSON has them; other keys are for other programs."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class OfClass(Part):
    """What was measured."""

    name: str
    version: int
    digest: str
    scaling: str
    fraction: Annotated[float, Field(gt=0, le=1)]


class Interval(Part):
    """A number with its interval."""

    value: Positive
    low: Positive
    high: Positive


class Number(Interval):
    """The number of the benchmark."""

    unit: str


class Size(Part):
    """A size of the curve."""

    units: Count
    clients: Count
    efficiency: Interval
    repeat_round_seconds: Annotated[list[Annotated[list[Seconds], Field(min_length=1)]], Field(min_length=1)]


class OfPhase(Part):
    """Seconds of a phase."""

    median: Phase


class Node(Part):
    """A node."""

    cpu: str
    gpu: str


class Topology(Part):
    """Where it was measured."""

    num_nodes: Count
    num_ranks: Count
    backend: str
    nodes: Annotated[list[Node], Field(min_length=1)]


class Result(Part):
    """A valid result."""

    of: OfClass = Field(alias="class")
    number: Number
    curve: Annotated[list[Size], Field(min_length=1)]
    phases: dict[str, OfPhase]
    topology: Topology
    host: str
    time: str
    commit: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    settings: dict[str, str] = Field(default_factory=dict)


class Invalid(Part):
    """An invalid result has no number."""

    culprit: str


class Head(Part):
    """What decides which of the two it must be."""

    valid: bool


def problem(result: dict[str, Any]) -> str:
    """What is wrong in a result, as the end of a sentence; empty when nothing is."""
    try:
        Head.model_validate(result)
        if not result["valid"]:
            Invalid.model_validate(result)
            return ""
        checked = Result.model_validate(result)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        return f"{place} is missing" if first["type"] == "missing" else f"{place}: {first['msg']}"
    last = checked.curve[-1]
    rate = last.clients / median(value for repeats in last.repeat_round_seconds for value in repeats)
    if abs(checked.number.value - rate) > TOLERANCE * rate:
        return f"number.value is {checked.number.value:g}, but the rounds of the largest size give {rate:g}"
    return ""
