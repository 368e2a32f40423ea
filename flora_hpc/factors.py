"""What algorithms that average products B A need of the method and of the other parts, and what merged weights cost."""

from math import prod
from typing import NamedTuple

from flora_hpc import lowrank
from flora_hpc.algorithms._algorithm import Combine, CombineRows
from flora_hpc.config import Config
from flora_hpc.methods._method import Method
from flora_hpc.roles import Roles


class Merged(NamedTuple):
    """What a client receives of a change of the frozen weights."""

    num_bytes: int
    form: str  # in words


NOTHING_MERGED = Merged(0, "")


class Layered(NamedTuple):
    """The parts of a run that concern the layers of its method."""

    name: str  # of the algorithm, and of the parts that were named instead of its own
    roles: tuple[Roles, ...]
    combine: Combine | CombineRows
    method: Method
    config: Config

    def merged(self, num_registered: int) -> Merged:
        """What each client of a round receives of merged weights: factors of the change or whole matrices, the smaller.

        A client that was not in the round before lacks earlier changes, too. So with a part of the clients, these are matrices.
        """
        if self.combine.merged_ranks is None:
            return NOTHING_MERGED
        num_clients = self.config.cohort.num_clients(num_registered)
        ranks = self.combine.merged_ranks(num_clients)
        whole = 4 * sum(prod(layer.shape) for layer in self.method.layers)
        factors = 4 * sum(ranks * layer.rank * sum(layer.shape) for layer in self.method.layers)
        if num_clients == num_registered and factors < whole:
            return Merged(factors, f"factors of rank {ranks} times the adapter's")
        return Merged(whole, "whole matrices")

    def misfit(self, remembers: str | None) -> str | None:
        """Why new factors of each layer do not go with the method or the other parts; None when they do, or there are none.

        `remembers` says what remembers a number for each trained number, if anything does.
        """
        if not self.combine.replaces:
            return None
        reason = self._misfit_of_method() or self._misfit_of_parts(remembers)
        section = "algorithm" if self.config.combine is None else "combine"
        return None if reason is None else f"{section}.name: {self.name} {reason}"

    def _misfit_of_method(self) -> str | None:
        what, cure = "makes new factors A and B of each layer", "set method.name: flora, or take another algorithm"
        if not self.method.layers:
            return f"{what}, and method {self.config.method.name} names no layer with such factors; {cure}"
        names = {name for layer in self.method.layers for name in (layer.a, layer.b)}
        if others := [name for name in self.method.shapes if name not in names]:
            return f"{what}, and this method also trains {others[0]}, which is no such factor; {cure}"
        if self.combine.merged_ranks is not None and self.method.merge is None:
            return (
                f"merges what it learns into the frozen weights, and method {self.config.method.name} cannot change these; {cure}"
            )
        return None

    def _misfit_of_parts(self, remembers: str | None) -> str | None:
        what = "makes new factors A and B of each layer"
        if any(len(lowrank.places(self.method, roles)) < len(self.method.layers) for roles in self.roles):
            return f"{what}, and this sharing part keeps some of them with each client; leave one of the two out"
        if remembers is not None:
            return f"{what} in every round, but {remembers}, which means nothing for other factors; leave one of the two out"
        if self._averages_others:
            return "has factors beside prepare, by_holder, by_norm or by_rank, whose means differ; mend the algorithm"
        return None

    @property
    def _averages_others(self) -> bool:
        """Whether the means are those of other numbers than the updates."""
        combine = self.combine
        return combine.prepare is not None or combine.by_holder or combine.by_norm or combine.by_rank is not None

    def misfit_of_cross_term(self) -> str | None:
        """Why the cross term cannot be measured; None when it can, or is not asked for."""
        if not self.config.evaluate.cross_term:
            return None
        all_private = not all(lowrank.places(self.method, roles) for roles in self.roles)
        reasons = {
            f"{self.name} is a rule that takes no mean": isinstance(self.combine, CombineRows),
            f"method {self.config.method.name} names no layer with such factors": not self.method.layers,
            f"with {self.name} each layer has a factor that stays with its client": all_private,
            f"{self.name} averages other numbers than the updates of these factors": self._averages_others,
        }
        reason = next((text for text, applies in reasons.items() if applies), None)
        if reason is None:
            return None
        return f"evaluate.cross_term: compares the means of A and B over clients with that of B A, and {reason}; leave it out"
