"""Try the parts of an algorithm on one client, before round 0, so that a mistake in a user's file gets a sentence."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from flora_hpc.algorithms._algorithm import (
    Combine,
    CombineRows,
    Ended,
    LayerMeans,
    Local,
    LocalStep,
    Now,
    Server,
    Transform,
)
from flora_hpc.errors import UserError, reason

NUM_PARAMS = 4
STATE = "the server's state must be a tensor, a number, a text, None, or tuples, lists and dictionaries of these"

Rows = dict[str, torch.Tensor]


def check(local: Local, transform: Transform | None, combine: Combine | CombineRows, server: Server) -> None:
    """Play one client without any change. Raises UserError where a part fails, or returns something else than it names."""
    adapter, row = torch.zeros(NUM_PARAMS), torch.zeros(1, NUM_PARAMS)
    state = attempt("server's init", lambda: server.init(adapter))
    if not is_storable(state):
        raise UserError(f"algorithm.name: {STATE}, so that a resumed run gets it back; mend the algorithm")
    message = named("server's message", attempt("server's message", lambda: server.message(state)), server.sends, adapter.shape)
    memory = dict.fromkeys(local.memory, row)
    for name, hook in (("gradient", local.gradient), ("personal", local.personal)):
        if hook is not None:
            gradient = attempt(f"local {name}", lambda hook=hook: hook(row, LocalStep(row, adapter, message, memory)))  # type: ignore[misc]
            shaped(f"local {name}", gradient, row.shape)
    sent: Rows = {}
    if local.end is not None:
        ended = Ended(row, row if local.sums_gradients else None, torch.ones(1, 1), message, memory)
        both = pair("local end", attempt("local end", lambda: local.end(ended)), 2)  # type: ignore[misc]
        sent, _ = named("rows of local end", both[0], local.sends), named("memories of local end", both[1], local.memory, row.shape)
    elif local.sends or local.memory:
        raise UserError("algorithm.name: the local part names rows or memories and has no end that makes them; mend the algorithm")
    if transform is not None:
        memory = dict.fromkeys(transform.memory, row)
        rows, own, num_bytes = pair("transform", attempt("transform", lambda: transform.apply(row, memory)), 3)
        shaped("transform", rows, row.shape)
        named("memories of transform", own, transform.memory, row.shape)
        if not isinstance(num_bytes, torch.Tensor) or num_bytes.dtype != torch.int64 or num_bytes.shape != (1,):
            raise UserError("algorithm.name: transform must return its bytes as int64 (num_clients,); mend the algorithm")
    if isinstance(combine, CombineRows):
        check_rule(combine)
        return
    prepared = {"update": row}
    if combine.prepare is not None:
        rows = attempt("combine's prepare", lambda: combine.prepare(row, torch.ones(1, 1)))  # type: ignore[misc]
        prepared = named("rows of combine's prepare", rows, ("update", *combine.sends))
    norms = {"norms": row} if combine.by_norm else {}
    shares = {} if combine.by_rank is None else {"held": row}
    means = {name: rows[0] for name, rows in (prepared | norms | shares | sent).items()}
    direction = attempt("combine's finish", lambda: combine.finish(means, Now(1, 1, 1, 1, means)))
    shaped("combine's finish", direction, adapter.shape)
    if combine.factors is not None:
        a, b = torch.zeros(2, NUM_PARAMS).double(), torch.zeros(NUM_PARAMS, 2).double()
        both = attempt("combine's factors", lambda: combine.factors(LayerMeans(b @ a, a, b)))  # type: ignore[misc]
        for name, factor, expected in zip("AB", pair("combine's factors", both, 2), (a, b), strict=True):
            if not isinstance(factor, torch.Tensor) or factor.shape != expected.shape:
                raise UserError(
                    f"algorithm.name: the {name} of combine's factors must be a tensor {tuple(expected.shape)}; mend the algorithm"
                )


def check_rule(rule: CombineRows) -> None:
    """Combine the update of one client. Raises UserError like `check`."""
    rows = torch.zeros(1, NUM_PARAMS, dtype=torch.float64)
    if rule.mix is not None:
        table = torch.zeros(2, 2, dtype=torch.float64)
        if rule.measure is not None:
            table = attempt("combine's measure", lambda: rule.measure(rows))  # type: ignore[misc]
        coefficients = attempt("combine's mix", lambda: rule.mix(table))  # type: ignore[misc]
        is_matrix = isinstance(coefficients, torch.Tensor) and coefficients.dim() == 2
        count = len(coefficients) if is_matrix else 1
        shaped("the result of combine's mix", coefficients, torch.Size([count, 1]), torch.float64)
        rows = rows.expand(count, -1)
    shaped(
        "the result of combine's columns", attempt("combine's columns", lambda: rule.columns(rows, 1)), rows[0].shape, torch.float64
    )


def attempt(what: str, call: Callable[[], Any]) -> Any:
    """The result of a part. Raises UserError, with the error, where it fails."""
    try:
        return call()
    except Exception as error:  # a user's file may raise any error
        why = f"{type(error).__name__}: {reason(error)}"
        raise UserError(f"algorithm.name: {what} fails on a client of {NUM_PARAMS} zeros ({why}); mend the algorithm") from error


def pair(what: str, result: Any, count: int) -> tuple[Any, ...]:
    """The same result. Raises UserError unless it is a tuple of `count` values."""
    if not isinstance(result, tuple) or len(result) != count:
        raise UserError(f"algorithm.name: {what} must return {count} values; see docs/own-parts.md")
    return result


def named(what: str, rows: Any, names: Iterable[str], shape: torch.Size | None = None) -> Rows:
    """The same rows. Raises UserError unless they are tensors of these names, and of this shape where one is due."""
    expected = ", ".join(names) or "nothing"
    if not isinstance(rows, dict) or sorted(rows) != sorted(names):
        actual = ", ".join(rows) or "nothing" if isinstance(rows, dict) else type(rows).__name__
        raise UserError(f"algorithm.name: {what} must have the names {expected}, and has {actual}; mend the algorithm")
    for name, tensor in rows.items():
        shaped(f"{name} of {what}", tensor, shape)
    return rows


def shaped(what: str, tensor: Any, shape: torch.Size | None, dtype: torch.dtype = torch.float32) -> None:
    """Raise UserError unless this is a tensor of that type and shape."""
    name = str(dtype)[6:]
    if not isinstance(tensor, torch.Tensor) or tensor.dtype != dtype or (shape is not None and tensor.shape != shape):
        form = f"{str(tensor.dtype)[6:]} {tuple(tensor.shape)}" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        expected = name if shape is None else f"{name} {tuple(shape)}"
        raise UserError(f"algorithm.name: {what} must be a tensor {expected}, and is {form}; mend the algorithm")


def is_storable(state: Any) -> bool:
    """Whether a checkpoint gives this state back as it was: named tuples, for example, would come back as lists."""
    if type(state) in (tuple, list):
        return all(map(is_storable, state))
    if isinstance(state, dict):
        return all(isinstance(key, str) and is_storable(value) for key, value in state.items())
    return state is None or isinstance(state, torch.Tensor | int | float | str)
