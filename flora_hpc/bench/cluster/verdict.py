"""Whether a benchmark counts: every digest is the one it must be, the accuracy fits, and no client was rejected."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

from flora_hpc.bench.cluster.parts import Units
from flora_hpc.bench.cluster.play import Played
from flora_hpc.records.views import count

LONE = "one rank: nothing to compare"


@dataclass(frozen=True)
class Plays:
    """What was played. Parts of one size played at once."""

    probes: list[str]  # digest of the round that each rank played alone, by rank; empty where it failed
    curve: Mapping[int, list[Played]]  # units of a part -> its parts
    proofs: Mapping[int, list[Played]]  # the same clients on each size
    strong: bool  # whether the rounds of the curve are the same on each size, too


@dataclass(frozen=True)
class Check:
    """A part of the validation."""

    name: str
    passed: bool
    text: str  # what was compared, or who differs


@dataclass(frozen=True)
class Verdict:
    """The result of the validation. `culprit` names the rank or node that differed first."""

    checks: list[Check]

    @property
    def valid(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def culprit(self) -> str:
        """What the first failed check says; empty for a valid result."""
        return next((check.text for check in self.checks if not check.passed), "")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"valid": self.valid, "culprit": self.culprit, "checks": [asdict(check) for check in self.checks]}


def judge(plays: Plays, units: Units, band: tuple[float, float]) -> Verdict:
    """Check everything; the order is that in which a fault would show."""
    return Verdict(
        [
            ranks_alone(plays.probes, units),
            ranks_agree(plays, units),
            same_digests(plays, units),
            none_rejected(plays),
            accuracy_fits(plays, band),
        ]
    )


def odd_ones(digests: Sequence[str]) -> list[int]:
    """The indices of digests that differ from the commonest one; of equally common ones, from the first."""
    if not digests:
        return []
    usual, _ = Counter(digests).most_common(1)[0]
    return [index for index, digest in enumerate(digests) if digest != usual]


def ranks_alone(probes: Sequence[str], units: Units) -> Check:
    """Every rank played the same small round alone."""
    if missing := [rank for rank in range(len(units.spots)) if not "".join(probes[rank : rank + 1])]:
        return Check("each rank alone", False, f"{rank_names(missing, units)}: did not finish the round that each rank plays alone")
    odd = odd_ones(probes)
    if not odd:
        return Check("each rank alone", True, f"{count(len(probes), 'rank')}, one digest: {probes[0]}" if len(probes) > 1 else LONE)
    names = rank_names(odd, units)
    tie = "; with two ranks either may be wrong" if len(probes) == 2 else ""
    return Check("each rank alone", False, f"{names}: another digest than the other ranks for the same clients, played alone{tie}")


def rank_names(ranks: Sequence[int], units: Units) -> str:
    """The names of at most four ranks, and how many more there are."""
    return ", ".join(map(units.rank_name, ranks[:4])) + (f" and {len(ranks) - 4} more" if len(ranks) > 4 else "")


def parts(plays: Plays) -> Iterator[tuple[str, int, Played]]:
    """Every part that played, small ones first: what it played, its units, and the result."""
    for what, by_size in (("proof", plays.proofs), ("rounds", plays.curve)):
        for size, of_size in sorted(by_size.items()):
            for part in of_size:
                yield what, size, part


def ranks_agree(plays: Plays, units: Units) -> Check:
    """In each part, all ranks had the same adapter after every round."""
    for _, size, part in sorted(parts(plays), key=lambda entry: entry[1]):
        where = f"in round {len(part.digests)} on {place(part, units, size)}"
        if part.drift:
            names = ", ".join(units.rank_name(part.ranks[index]) for index in odd_ones(part.drift))
            return Check("ranks agree", False, f"{names}: another adapter than the other ranks, {where}")
        if part.problem:
            return Check("ranks agree", False, f"the rounds ended {where}: {part.problem}")
    return Check("ranks agree", True, "all ranks of each part had one adapter after every round")


def same_digests(plays: Plays, units: Units) -> Check:
    """Every part has the digests of the smallest size, round by round."""
    number = 0
    for by_size in (plays.proofs, plays.curve) if plays.strong else (plays.proofs,):
        smallest = [tuple(part.digests) for part in by_size[min(by_size)]]
        usual, _ = Counter(smallest).most_common(1)[0]
        for size, of_size in sorted(by_size.items()):
            for part in of_size:
                number += 1
                differing = [index for index, pair in enumerate(zip_longest(part.digests, usual)) if len(set(pair)) > 1]
                if differing:
                    text = f"{place(part, units, size)}: another digest than the smallest run's, first after round {differing[0]}"
                    return Check("same digests", False, text)
    for size, of_size in sorted(plays.curve.items()):
        if len({tuple(part.digests) for part in of_size}) > 1:
            odd = odd_ones([" ".join(part.digests) for part in of_size])
            return Check("same digests", False, f"{place(of_size[odd[0]], units, size)}: another digest than parts of its size")
    if len(units.spots) == 1:
        return Check("same digests", True, LONE)
    *smaller, largest = sorted(plays.curve)
    on = " and ".join([*map(str, smaller), count(largest, "node" if units.are_nodes else "rank")])
    of = "one digest for each round" if plays.strong else "one digest for the one round that all sizes play"
    return Check("same digests", True, f"{count(number, 'run')}, on {on}: {of}")


def none_rejected(plays: Plays) -> Check:
    """No client's update was left out of the average."""
    number = sum(part.num_rejected for _, _, part in parts(plays))
    return Check(
        "nobody rejected", number == 0, f"{count(number, 'update')} {'was' if number == 1 else 'were'} not finite or far too large"
    )


def accuracy_fits(plays: Plays, band: tuple[float, float]) -> Check:
    """The accuracy after the first round that counts lies in the class's band, on every part."""
    values = [part.accuracy for of_size in plays.curve.values() for part in of_size]
    passed = all(band[0] <= value <= band[1] for value in values)
    numbers = [value for value in values if value == value]
    ended = f"; {count(len(values) - len(numbers), 'part')} ended before" if len(numbers) < len(values) else ""
    span = f"{min(numbers):.3f} to {max(numbers):.3f}" if numbers else "not measured"
    return Check("accuracy", passed, f"{span}, the class's band is {band[0]:g} to {band[1]:g}{ended}")


def place(part: Played, units: Units, size: int) -> str:
    """The units of a part, for people."""
    names = list(dict.fromkeys(units.name(units.of_ranks[rank]) for rank in part.ranks))
    what = "nodes" if units.are_nodes else "ranks"
    if len(names) == 1:
        return names[0]
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"{len(names)} {what} ({shown})"
