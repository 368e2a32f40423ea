"""Predict a round on some nodes: the slowest rank's own work, with the noise of many ranks, and the phases of the whole round."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flora_hpc.bench.predict import drivers, merging, noise
from flora_hpc.bench.predict.drivers import COLUMNS, OF_RANK, OF_ROUND, Drivers, Floats
from flora_hpc.bench.predict.fit import DRAWS, Term, fit
from flora_hpc.bench.predict.samples import Sample
from flora_hpc.errors import UserError
from flora_hpc.setup import Setup

BAND = (0.025, 0.975)
COLLECTIVES = 3  # of a round: whether to stop, the exact sums, the reports
SLOWEST = "slowest rank"  # the term of the noise between ranks
# Where ranks share cores, by runs of 4 and 8 ranks of flora-tiny on 2 cores, 2,000 and 10,000 clients a round: the geometric mean,
# and the standard deviation of the logarithms
UNEVEN = (1.35, 0.11)  # times as long as by all cores without a pause: they get unlike numbers of ranks, and switching costs
TURN_SECONDS = (2e-3, 0.25)  # that a step of a collective waits, for each thread on a core, until a rank has its turn


@dataclass(frozen=True)
class Target:
    """Where a round is predicted. `cores` of a node; None: enough for every thread."""

    nodes: int = 1
    ranks_per_node: int = 1
    gpus_per_node: int = 0
    cores: int | None = None

    @property
    def num_ranks(self) -> int:
        """All ranks."""
        return self.nodes * self.ranks_per_node

    def crowding(self, threads: int) -> float:
        """How many threads share a core, where ranks have `threads` each; at least 1."""
        return max(1.0, self.ranks_per_node * threads / self.cores) if self.cores else 1.0


@dataclass(frozen=True)
class Model:
    """All terms, and the runs that they come from."""

    samples: Sequence[Sample]
    terms: Mapping[str, Term]
    residuals: Floats  # noise between ranks
    merge_seconds: float  # of the report of one rank, measured here

    @property
    def same_work(self) -> list[Sample]:
        """Runs of the same model, method and algorithm."""
        return [each for each in self.samples if not each.other]

    @property
    def most_ranks(self) -> int:
        """Ranks of the largest of these runs."""
        return max(each.num_ranks for each in self.same_work)

    @property
    def most_clients(self) -> int:
        """Clients of a round, at most, in these runs."""
        return max(each.drivers.num_clients for each in self.same_work)

    @property
    def threads(self) -> int:
        """Threads of a rank."""
        return max(each.threads for each in self.same_work)


@dataclass(frozen=True)
class Interval:
    """Seconds with a 95 % band."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, draws: Floats) -> "Interval":
        """The band of draws around a value."""
        low, high = np.quantile(draws, BAND)
        return cls(value, min(value, float(low)), max(value, float(high)))


@dataclass(frozen=True)
class Round:
    """A predicted round. `terms` add up to `seconds`; `warnings` say what the runs do not determine."""

    target: Target
    num_clients: int
    num_groups: int
    seconds: Interval
    terms: Mapping[str, Interval]
    measured: Sample | None  # a run of the same ranks, clients and batches
    warnings: tuple[str, ...]

    @property
    def dominating(self) -> str:
        """The term that takes most of the round."""
        return max(self.terms, key=lambda name: self.terms[name].value)


def model(samples: Sequence[Sample], seed: int = 0) -> Model:
    """Fit every phase. Raises UserError where runs of the same work lack one."""
    rng = np.random.default_rng(seed)
    terms = {phase: term for phase in COLUMNS if (term := fit(phase, samples, rng)) is not None}
    return Model(samples, terms, noise.residuals(samples), merging.seconds_of_a_rank())


def predict(model: Model, setup: Setup, target: Target, seed: int = 0) -> Round:
    """Predict a usual round of `setup`. Raises UserError where a phase has a part that no run shows."""
    shape = drivers.of_round(setup, target.num_ranks, target.nodes)
    shape, warnings = known_tier(model, shape, target)
    warnings += unvaried(model, shape) + unlike_threads(model) + without_drivers(setup)
    value = _round(model, shape, target, usual_inputs(model))
    draws = _round(model, shape, target, drawn_inputs(model, np.random.default_rng(seed)))
    for terms in (value, draws):
        terms["eval"] = terms["eval"] * share_tested(setup)
    return Round(
        target=target,
        num_clients=shape.num_clients,
        num_groups=shape.num_groups,
        seconds=Interval.of(float(np.sum([*value.values()])), np.sum([*draws.values()], axis=0)),
        terms={name: Interval.of(float(value[name][0]), draws[name]) for name in value},
        measured=measured(model, setup, target),
        warnings=tuple(warnings),
    )


def share_tested(setup: Setup) -> float:
    """The share of rounds after which the adapter is tested."""
    every = setup.evaluate.every
    return -(-setup.rounds // every) / setup.rounds if setup.rounds else 1.0


def unlike_threads(model: Model) -> list[str]:
    """A sentence where the runs have unlike numbers of threads."""
    threads = sorted({each.threads for each in model.same_work})
    if len(threads) < 2:
        return []
    counts = " and ".join(map(str, threads))
    return [f"ranks of the runs have {counts} threads, but are taken for alike; give runs with OMP_NUM_THREADS of the wanted nodes"]


def without_drivers(setup: Setup) -> list[str]:
    """A sentence on parts of a round that count as if they took the same on any number of clients and ranks."""
    parts = {
        "the rule that compares updates": setup.federation.rule is not None,
        "sums of products": setup.sums_products,
        "tests of clients' own models": setup.evaluate.personal,
        "tests by LoRA rank": setup.evaluate.per_rank,
        "memories of clients on their way": bool(setup.federation.memory_widths(setup.client)),
    }
    names = ", ".join(name for name, is_there in parts.items() if is_there)
    return [f"{names}: count as in the runs, whatever the number of clients and ranks"] if names else []


class Inputs(NamedTuple):
    """What a round follows from: the usual values, or draws of them. `seconds(term, rows)` gives (num_draws, num_rows)."""

    seconds: Callable[[Term, Floats], Floats]
    residuals: Floats  # (num_draws, n)
    uneven: Floats  # (num_draws,)
    turn_seconds: Floats  # (num_draws,)


def usual_inputs(model: Model) -> Inputs:
    """One draw, of the usual values."""
    uneven, turn_seconds = (np.array([usual]) for usual, _ in (UNEVEN, TURN_SECONDS))
    return Inputs(lambda term, rows: term.seconds(rows)[None], model.residuals[None], uneven, turn_seconds)


def drawn_inputs(model: Model, rng: np.random.Generator) -> Inputs:
    """DRAWS draws."""
    residuals = rng.choice(model.residuals, (DRAWS, len(model.residuals)))
    uneven, turn_seconds = (usual * np.exp(rng.normal(0, spread, DRAWS)) for usual, spread in (UNEVEN, TURN_SECONDS))
    return Inputs(lambda term, rows: term.sampled(rows), residuals, uneven, turn_seconds)


def _round(model: Model, shape: Drivers, target: Target, inputs: Inputs) -> dict[str, Floats]:
    """The terms of a round, (num_draws,) each."""
    of_phase = {phase: inputs.seconds(term, shape.of[phase]) for phase, term in model.terms.items()}
    of_phase["batch"] = of_phase["batch"] + shape.deal_seconds
    work: Floats = np.sum([of_phase[phase] for phase in OF_RANK], axis=0)  # (num_draws, num_ranks)
    slow, pick, is_crowded = work.argmax(1), np.arange(len(work)), target.crowding(model.threads) > 1
    terms = {phase: of_phase[phase][pick, slow] for phase in OF_RANK}
    for phase in OF_ROUND:
        terms[phase] = of_phase[phase][:, 0] if phase in of_phase else np.zeros(len(work))
    terms["log"] = terms["log"] + model.merge_seconds * (target.num_ranks - 1)
    if is_crowded:
        terms |= _on_shared_cores(terms, work, shape, target, model.threads, inputs)
    own = np.sum([terms[phase] for phase in OF_RANK], axis=0)
    alike = target.nodes if is_crowded else noise.num_alike(np.median(work, axis=0))
    levels = np.array([noise.slowest_of(each, alike) for each in inputs.residuals])
    if target.num_ranks > 1:
        terms[SLOWEST] = own * np.maximum(0.0, levels - 1)
    if target.num_ranks > 1 and not is_crowded:  # rank 0 writes while the others train: only what makes it the last one counts
        first = work[:, 0] + terms["log"]
        terms["log"] = np.clip(first - own - terms[SLOWEST], 0.0, terms["log"])
    return terms


def _on_shared_cores(
    terms: Mapping[str, Floats], work: Floats, shape: Drivers, target: Target, threads: int, inputs: Inputs
) -> dict[str, Floats]:
    """The terms that change where a node has fewer cores than threads. `work` (num_draws, num_ranks) is that of each rank alone.

    The cores of a node share all the work of its ranks. Ranks that wait for rank 0 or for a test sleep, so these stay as they are.
    """
    crowding = target.crowding(threads)
    by_node = work.reshape(len(work), target.nodes, target.ranks_per_node).sum(2).max(1) * threads / (target.cores or 1)
    stretch = np.maximum(1.0, inputs.uneven * by_node / work.max(1))
    steps = (COLLECTIVES + shape.of["jacobian"].any()) * np.log2(target.num_ranks)
    return {
        **{phase: terms[phase] * stretch for phase in OF_RANK},
        "server": terms["server"] * crowding,
        "comm": terms["comm"] + steps * crowding * inputs.turn_seconds,
    }


def known_tier(model: Model, shape: Drivers, target: Target) -> tuple[Drivers, list[str]]:
    """The drivers, with communication between nodes as on one node where no run shows it; and sentences about that."""
    if target.num_ranks == 1:
        return shape, []
    term = model.terms.get("comm")
    if term is None:
        return shape, [
            "communication counts as 0, since no run has 2 ranks or more: give one with --from (mpiexec -n 2 flora-hpc run ...) or "
            "a result.json of `flora-hpc bench cluster`, beside runs with other cohort.size and client.batch_size: with --from, "
            "none is played here"
        ]
    if target.nodes == 1 or (np.abs(term.seen[:, [1, 3]]).sum(0) > 0).all():
        return shape, []
    num_bytes = float(shape.of["comm"][0, 3])
    table = np.array([drivers.comm(num_bytes, target.num_ranks, 1)])
    sentence = (
        "communication between nodes counts as inside a node, since no run has 2 nodes or more: add one, or a result.json of them"
    )
    return shape._replace(of={**shape.of, "comm": table}), [sentence]


def unvaried(model: Model, shape: Drivers) -> list[str]:
    """Sentences about phases that the runs do not determine here. Raises UserError where training has a part that is in none."""
    sentences = []
    for phase, term in model.terms.items():
        rows = shape.of[phase]
        row = rows[rows.sum(1).argmax()]
        if phase == "comm" and not row.any():
            continue
        if cure := term.unvaried(row):
            if phase in ("jacobian", "train") and term.missing(row):
                raise UserError(f"predict: no run shows all of {phase} of this configuration; give a run with {cure}, too (--from)")
            sentences.append(f"{phase}: the runs do not vary enough to tell its terms apart; add a run with {cure}")
    return sentences


def measured(model: Model, setup: Setup, target: Target) -> Sample | None:
    """A run of the same work on as many ranks, with as many clients of the same batches; None where there is none."""
    for each in model.same_work:
        client = each.config.client
        alike = (each.num_ranks, each.num_nodes, each.drivers.num_clients) == (
            target.num_ranks,
            target.nodes,
            setup.num_participants,
        )
        if (
            alike
            and (client.batch_size, client.epochs) == (setup.client.batch_size, setup.client.epochs)
            and same_sizes(each, setup)
        ):
            return each
    return None


def same_sizes(each: Sample, setup: Setup) -> bool:
    """Whether clients have as many examples, in the mean, as in a run; exact for clients of one size."""
    examples = each.drivers.of["train"][:, -1].mean()
    here = drivers.of_round(setup, each.num_ranks).of["train"][:, -1].mean()
    return bool(abs(examples - here) <= 0.01 * here)
