"""Mistakes in the parts of a user's algorithm get a sentence before round 0."""

from typing import NamedTuple

import pytest
import torch

from flora_hpc import tried
from flora_hpc.algorithms._algorithm import Combine, Local, Server, Transform
from flora_hpc.algorithms.fedavg import mean
from flora_hpc.errors import UserError

ADD = Server(lambda adapter: None, lambda adapter, direction, state, now: (adapter + direction, state))


class Moments(NamedTuple):
    first: torch.Tensor


def check(
    local: Local | None = None, transform: Transform | None = None, combine: Combine | None = None, server: Server = ADD
) -> None:
    tried.check(local or Local(), transform, combine or mean(), server)


MISTAKES = {
    "a gradient that fails": (
        {"local": Local(lambda gradient, step: step.memory["c"], memory=("c",), end=lambda ended: ({}, {}))},
        "memories of local end must have the names c, and has nothing",
    ),
    "a gradient that looks up what is not there": (
        {"local": Local(lambda gradient, step: step.message["c"])},
        "local gradient fails on a client of 4 zeros (KeyError: 'c')",
    ),
    "a gradient of another type": ({"local": Local(lambda gradient, step: gradient.double())}, "and is float64 (1, 4)"),
    "an end that sends more than it names": (
        {"local": Local(end=lambda ended: ({"c": ended.updates}, {}))},
        "rows of local end must have the names nothing, and has c",
    ),
    "names without an end": ({"local": Local(sends=("c",))}, "has no end that makes them"),
    "a message that lacks a name": (
        {"server": ADD._replace(sends=("c",))},
        "server's message must have the names c, and has nothing",
    ),
    "a state that would not come back": (
        {"server": ADD._replace(init=Moments)},
        "the server's state must be a tensor, a number, a text, None, or tuples, lists and dictionaries of these",
    ),
    "factors that fail": (
        {"combine": mean()._replace(factors=lambda means: means.c)},
        "combine's factors fails on a client of 4 zeros (AttributeError: ",
    ),
    "one factor": ({"combine": mean()._replace(factors=lambda means: (means.a,))}, "combine's factors must return 2 values"),
    "factors in the other order": (
        {"combine": mean()._replace(factors=lambda means: (means.b, means.a))},
        "the A of combine's factors must be a tensor (2, 4)",
    ),
    "a transform with two values": ({"transform": Transform(lambda rows, memory: (rows, {}))}, "transform must return 3 values"),
    "bytes as a number": ({"transform": Transform(lambda rows, memory: (rows, {}, 16))}, "bytes as int64 (num_clients,)"),
    "bytes as floats": (
        {"transform": Transform(lambda rows, memory: (rows, {}, torch.ones(1)))},
        "bytes as int64 (num_clients,)",
    ),
    "a transform without its memory": (
        {"transform": Transform(lambda rows, memory: (rows, {}, torch.ones(1, dtype=torch.int64)), ("error",))},
        "memories of transform must have the names error, and has nothing",
    ),
    "a mean over clients": (
        {"transform": Transform(lambda rows, memory: (rows[0], {}, torch.ones(1, dtype=torch.int64)))},
        "transform must be a tensor float32 (1, 4), and is float32 (4,)",
    ),
    "rows that are not named": (
        {"combine": mean()._replace(prepare=lambda update, steps: {"update": update, "steps": steps})},
        "rows of combine's prepare must have the names update, and has update, steps",
    ),
    "no direction": ({"combine": mean()._replace(finish=lambda means, now: None)}, "and is NoneType"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_its_sentence(mistake: str) -> None:
    parts, sentence = MISTAKES[mistake]
    with pytest.raises(UserError) as error:
        check(**parts)
    assert str(error.value).startswith("algorithm.name: ")
    assert sentence in str(error.value)


def test_right_parts_pass() -> None:
    check()
    check(server=ADD._replace(init=lambda adapter: {"moments": (adapter, adapter), "steps": 0, "note": None}))
