"""What the user must change, in one clear message."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake of the user's: shown without a traceback, ends the program with exit code 2."""


class StoppedError(Exception):
    """A signal stopped the job, on every rank; what it says is how to go on. Ends the program with exit code 75.

    `num_rounds` is how many rounds the job saved since it started.
    """

    def __init__(self, sentence: str, num_rounds: int = 0) -> None:
        super().__init__(sentence)
        self.num_rounds = num_rounds


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest of `choices`, or nothing when none is near."""
    by_lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
    return f"; did you mean '{by_lower[near[0]]}'?" if near else ""
