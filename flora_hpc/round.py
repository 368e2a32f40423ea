"""One round of federated learning, as every rank plays it.

every rank holds the same adapter and server state
    cohort -> this rank's clients -> groups           the same result on every rank, nothing is sent (unless dynamic)
    memories of these clients are borrowed            from the ranks that keep them, where clients remember something
    rank 0 trains the server's own update             on images that no client has, where a rule compares updates with it
    each group trains; its rows are added to running sums: sharing, local, transform and combine of the algorithm
    the sums are added up over ranks                  one allreduce, exact
    or a rule such as a median combines all updates   in blocks of columns, an exchange for each block of every rank
    products of low-rank factors are combined         each layer on one rank, where the algorithm or evaluate.cross_term needs them
    the server computes the next adapter              on every rank, nothing is sent
    memories are given back                           as they are after the round; an abandoned round leaves them as they were
    the adapter is tested                             now, or in the next round by ranks that have trained their groups
    own models of this rank's clients are tested      with evaluate.personal
    rank 0 gathers the reports and makes the record
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from flora_hpc import cohort, firststep, products, rows, seeds, trainer
from flora_hpc.accuracy import AdapterTests, sum_of
from flora_hpc.algorithms._algorithm import Combine, Now
from flora_hpc.comm.communicator import AgreedError
from flora_hpc.comm.meter import Meter
from flora_hpc.data.images import Ints
from flora_hpc.exact import ExactSums
from flora_hpc.groups import Common, TrainedGroups, server_update, train_group, with_batches
from flora_hpc.memories import Borrowed, Memories
from flora_hpc.personal import Personal
from flora_hpc.products import Combined
from flora_hpc.records import sampled
from flora_hpc.records.known import NOT_TESTED, RankReport, RightAnswers, RoundRecord, merge
from flora_hpc.records.schema import CLIENTS, RANKS, Rows
from flora_hpc.roles import freeze
from flora_hpc.setup import Setup, Site

NORM_BLOCK = 2**20  # numbers that are float64 at once


class AbandonedError(Exception):
    """A round was given up."""


@dataclass
class State:
    """The state that a round changes: the same adapter and server state on every rank, and the memories at home on this rank."""

    adapter: torch.Tensor  # (num_params,) float32
    server: Any
    tests: AdapterTests
    memories: Memories | None = None  # of clients; None where they remember nothing
    merged: Mapping[str, torch.Tensor] = field(default_factory=dict)  # into frozen weights, on the CPU; see `Combined.merged`
    accepted_weight: int = 0  # of the updates that the last round added up; 0 when every update was rejected


def play(setup: Setup, site: Site, state: State, number: int) -> list[RoundRecord]:
    """Play round `number` (0 only evaluates) and update `state`. Returns, on rank 0, the records that are complete now.

    Raises AbandonedError, on every rank, when a signal abandons the round; adapter, server state and memories are then unchanged.
    """
    comm, tests = site.comm, state.tests
    trained, previous_correct, message_norm, cross_term = TrainedGroups(ExactSums({})), NOT_TESTED, np.nan, np.nan
    if number > 0:
        with comm.phase("log"):
            message_norm = norm_of_message(setup, state, number) if comm.rank == 0 else np.nan
        trained = train_my_groups(setup, site, state, number)
        previous_correct = tests.later(state.adapter, number - 1)
        if site.stop.agreed_to_abandon(comm):
            raise AbandonedError
        comm.allreduce(trained.sums.buffer)
        rule, num_accepted = setup.federation.rule, trained.sums.total("update")
        direction = None
        if rule is not None and trained.updates is not None and num_accepted:
            direction = rows.combine(comm, trained.updates, rule, setup.federation.attackers)
        combined = combine_products(setup, site, state, trained, number)
        with comm.phase("server"):
            apply_sums(setup, state, trained.sums, number, combined, direction)
        cross_term = combined.cross_term if setup.evaluate.cross_term else np.nan
        if state.memories is not None:
            state.memories.give_back(*trained.changes(state.memories))
    correct = tests.now(state.adapter, number)
    if setup.evaluate.personal and number > 0 and setup.is_tested(number):
        evaluate_own_models(setup, site, state.adapter, number, trained, correct)
    clients = np.concatenate([np.zeros(0, CLIENTS), *trained.rows])
    own_report = report(comm, number, clients, correct, previous_correct, state)
    with comm.phase("log"):
        data = with_chosen_clients(setup, number, own_report).to_bytes()
    reports = comm.gather(data)
    if reports is None:
        return []
    with comm.phase("log"):
        rank_reports = [RankReport.from_bytes(data) for data in reports]
        record = merge(number, rank_reports)
        record.row["message_norm"], record.row["cross_term"] = message_norm, cross_term
        record.row["message_bytes"] = record.row["num_clients"] * setup.federation.message_bytes(number) if number else 0
        if number == 0 and (traffic := setup.first_traffic) is not None:
            record.row["uplink_bytes"], record.row["downlink_bytes"] = traffic.uplink_bytes, traffic.downlink_bytes
        return tests.complete_records(record, rank_reports)


def evaluate_own_models(
    setup: Setup, site: Site, adapter: torch.Tensor, number: int, trained: TrainedGroups, correct: RightAnswers
) -> None:
    """Test the own model of each client that this rank trained; `correct` are this rank's right answers with the new adapter."""
    total = sum_of([np.frombuffer(data, np.int64) for data in site.comm.allgather(correct.test.tobytes())])
    with site.comm.phase("eval"):
        tests = Personal(setup, number, adapter, total)
        for index, table in enumerate(trained.rows):
            tests.test(table, trained.remembered[index] if trained.remembered else {})


def combine_products(setup: Setup, site: Site, state: State, trained: TrainedGroups, number: int) -> Combined:
    """Sum the products B A over clients, and compute the cross term and, if the algorithm makes them, new factors of each layer.

    All ranks call this together.
    """
    if trained.products is None or not trained.sums.total("update"):
        return Combined((), np.nan)
    trained.products.collect(site.comm)
    combine, method = setup.federation.combine, setup.method
    assert isinstance(combine, Combine)
    fresh = method.pack(method.init(seeds.generator(setup.seed, "fresh adapter", number))) if combine.fresh else None
    return products.combine(site.comm, combine, trained.products, trained.sums, state.adapter, fresh)


def apply_sums(
    setup: Setup, state: State, sums: ExactSums, number: int, combined: Combined, direction: torch.Tensor | None = None
) -> None:
    """Apply the server's part to the means of the clients' rows. When every update was rejected, the adapter stays as it was.

    `direction` (num_shared,) is that of a rule that needs all updates; otherwise the means of the rows are made into one.
    Numbers that clients did not send stay as they were, too, whatever the server remembers of them. New factors of layers replace
    what the server's part makes.
    """
    federation, adapter = setup.federation, state.adapter
    state.accepted_weight = sums.total("update")
    if not state.accepted_weight:
        return
    means = {name: mean.to(adapter.device) for name, mean in sums.means().items()}
    roles = federation.roles_in(number)
    whole = {
        name: roles.trained.put(torch.zeros_like(adapter), mean) for name, mean in means.items() if name in federation.local.sends
    }
    now = Now(number, sums.num_clients, federation.num_registered, state.accepted_weight, means | whole)
    shared = federation.combine.finish(means, now) if isinstance(federation.combine, Combine) else direction
    assert shared is not None
    direction = roles.sent.put(torch.zeros_like(adapter), shared.to(adapter.device))
    own = adapter if roles.sent.is_all else adapter.clone()  # a server may change its adapter in place
    result, state.server = checked(federation.server.apply(own, direction, state.server, now), len(adapter))
    state.adapter = combined.put(roles.sent.put(adapter, roles.sent.take(result)))
    if combined.rest:
        state.merged = combined.merged(state.merged)
        assert setup.method.merge is not None
        setup.method.merge(state.merged)


def checked(result: Any, num_params: int) -> tuple[torch.Tensor, Any]:
    """The result of a server's `apply`. Raises AgreedError, on every rank, unless it is a finite adapter and a state."""
    rule = f"the server's apply must return the next adapter, a float32 tensor ({num_params},), and a state"
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[0], torch.Tensor):
        raise AgreedError(f"algorithm.name: {rule}, not a {type(result).__name__}; mend the algorithm")
    adapter, server = result
    if adapter.shape != (num_params,) or adapter.dtype != torch.float32:
        raise AgreedError(f"algorithm.name: {rule}, not {str(adapter.dtype)[6:]} {tuple(adapter.shape)}; mend the algorithm")
    if not all(torch.isfinite(bound) for bound in (torch.aminmax(adapter) if num_params else ())):
        raise AgreedError("algorithm.name: the server made numbers that are not finite; lower its step, or mend the algorithm")
    return adapter, server


def train_my_groups(setup: Setup, site: Site, state: State, number: int) -> TrainedGroups:
    """Train the groups of this rank: the exact sums of what they send, a row for each client, and what clients remember."""
    federation = setup.federation
    with site.comm.phase("batch"):
        local_groups = my_groups(setup, site, number)
        updates = rows.Updates(len(federation.roles_in(number).shared)) if federation.rule else None
        trained = TrainedGroups(ExactSums(federation.channels(number)), updates)
        if setup.sums_products:
            trained.products = products.sums_of(setup.method, federation.roles_in(number), setup.num_participants)
        num_local = sum(map(len, local_groups)) if isinstance(local_groups, Sequence) else 0
    borrowed = None
    if state.memories is not None:
        needed_clients = (
            local_groups if isinstance(local_groups, Sequence) else [participants(setup, number)[0]]
        )  # dynamic: any of all
        borrowed = state.memories.borrow(np.concatenate([np.zeros(0, np.int64), *needed_clients]))
    common = prepare(setup, site, state, number, borrowed)
    if federation.rule is not None and federation.rule.needs_server and site.comm.rank == 0:
        assert trained.updates is not None
        with site.comm.phase("train"):
            trained.updates.add(np.array([rows.SERVER]), server_update(setup, common))
    done = 0
    site.trained(done, num_local, setup.num_participants)
    for group in with_batches(setup, site, number, local_groups):
        if site.stop.abandons:
            break
        train_group(setup, site, common, group, trained)
        done += len(group.clients)
        site.trained(done, num_local, setup.num_participants)
    return trained


def prepare(setup: Setup, site: Site, state: State, number: int, borrowed: Borrowed | None) -> Common:
    """What all groups of a round have in common: trained tensors, the server's message, and the Jacobian where there is one.

    All ranks call this together.
    """
    federation, roles = setup.federation, setup.federation.roles_in(number)
    method = freeze(setup.method, roles, state.adapter)
    start = roles.trained.take(state.adapter)
    message = {name: roles.trained.take(numbers) for name, numbers in federation.server.message(state.server).items()}
    timed = partial(site.comm.phase, "train")
    first = firststep.make(method, start, site.comm, timed) if setup.by_jacobian else None
    return Common(number, roles, setup.task._replace(method=method), start, message, borrowed, first, state.adapter)


def participants(setup: Setup, number: int) -> tuple[Ints, Ints]:
    """The participants (n,) of a round, and the cost of training each, in examples (n,)."""
    clients = setup.schedule.clients(number)
    return clients, setup.client.epochs * trainer.filled_up(setup.holdings.sizes(clients), setup.client, setup.padding_multiple)


def costs_of(setup: Setup, number: int, find: Callable[[Ints], Ints]) -> cohort.Costs:
    """The costs of the places of a round, whose clients `find` gives; clients with equally many examples need not be found."""
    size, num_clients = setup.holdings.common_size, setup.num_participants
    sizes = setup.holdings.sizes(find(np.arange(num_clients))) if size is None else np.array([size])
    costs = setup.client.epochs * trainer.filled_up(sizes, setup.client, setup.padding_multiple)
    return cohort.sort(costs) if size is None else cohort.equal(int(costs[0]), num_clients)


def groups_of_ranks(setup: Setup, num_ranks: int, number: int, ranks: Sequence[int] | None = None) -> list[list[Ints]]:
    """The groups of each of `num_ranks` ranks, or of those in `ranks` alone.

    With dynamic assignment this is a forecast, for ranks that are equally fast.
    """
    find = setup.schedule.finder(number)
    costs = costs_of(setup, number, find)
    by_rank = cohort.places_of_ranks(costs, setup.grouping, num_ranks, setup.cohort.assignment, ranks)
    return [[find(places) for places in groups] for groups in by_rank]


def my_groups(setup: Setup, site: Site, number: int) -> Iterable[Ints]:
    """The groups that this rank trains. With dynamic assignment, this rank draws the next group when it asks for it."""
    if setup.cohort.assignment == "dynamic":
        find = setup.schedule.finder(number)
        units = cohort.units(costs_of(setup, number, find), setup.grouping, site.comm.size)
        return (find(units[index]) for index in site.counters.draw("groups", number, len(units)))
    return groups_of_ranks(setup, site.comm.size, number, [site.comm.rank])[0]


def norm_of_message(setup: Setup, state: State, number: int) -> float:
    """Euclidean norm of all that the server sends in round `number` besides the adapter; NaN without any."""
    trained, sent = setup.federation.roles_in(number).trained, setup.federation.server.message(state.server)
    if not sent:
        return np.nan
    squares = 0.0
    for numbers in sent.values():
        for part in torch.split(trained.take(numbers).cpu(), NORM_BLOCK):  # by NumPy, since its bits depend on no threads
            squares += float(np.square(part.numpy().astype(np.float64)).sum())
    return float(np.sqrt(squares))


def report(
    comm: Meter, number: int, clients: Rows, correct: RightAnswers, previous_correct: RightAnswers, state: State
) -> RankReport:
    """This rank's report to rank 0: its rows of /clients, its counts of right answers, and its timeline since the last round."""
    with comm.phase("log"):
        adapter_digest = digest(state.adapter, *state.merged.values())
    lap = comm.lap()
    row = np.zeros(1, RANKS)
    row["round"], row["rank"], row["num_clients"] = number, comm.rank, len(clients)
    for phase, value in lap.seconds.items():
        row[f"{phase}_seconds"] = value
    row["round_seconds"], row["collective_bytes"], row["peak_memory_bytes"] = lap.total, lap.num_bytes, peak_memory_bytes()
    return RankReport(row, clients, correct, adapter_digest, np.array(lap.collectives), previous_correct)


def with_chosen_clients(setup: Setup, number: int, own_report: RankReport) -> RankReport:
    """A rank's report with rows of those clients alone that have a row in run.h5, as `records.clients` says."""
    most, num_clients = setup.most_client_rows, setup.num_participants
    if number == 0 or most is None or most >= num_clients:
        return own_report
    return own_report.only(sampled.chosen(setup.seed, number, most, num_clients, setup.schedule.finder(number)))


def peak_memory_bytes() -> int:
    """The largest resident set of this process so far (Linux's VmHWM, which does not include the parent's memory)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def digest(*tensors: torch.Tensor) -> int:
    """A hash of the adapter, and of what is merged into frozen weights, 64 bits."""
    state = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        state.update(np.ascontiguousarray(tensor.cpu().numpy()).data)  # hashed without a copy: it may be a whole CLIP
    return int.from_bytes(state.digest(), "little", signed=True)
