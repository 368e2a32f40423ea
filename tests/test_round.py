import hashlib
import resource
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from flora_hpc import exact, trainer
from flora_hpc import round as rounds
from flora_hpc.accuracy import AdapterTests
from flora_hpc.algorithms import fedavg
from flora_hpc.algorithms._algorithm import Algorithm, Server, Setting
from flora_hpc.cohort import Grouping
from flora_hpc.comm.backends.serial import Serial
from flora_hpc.comm.meter import Meter
from flora_hpc.config import ClientConfig, CohortConfig, EvaluateConfig
from flora_hpc.data.holdings import Partition
from flora_hpc.data.inputs import Features
from flora_hpc.federation import Federation
from flora_hpc.memories import Memories
from flora_hpc.methods._method import Method, Portions
from flora_hpc.records.known import RankReport, RoundRecord
from flora_hpc.records.views import PHASES
from flora_hpc.roles import roles_of
from flora_hpc.setup import Setup, Site
from flora_hpc.trainer import Start
from tests.test_trainer import linear_method


def four_clients(**client: object) -> tuple[Setup, rounds.State]:
    """Four clients with 5, 3, 3 and 1 examples of a linear problem."""
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(12, 3, generator=generator), torch.randint(0, 2, (12,), generator=generator)
    setup = Setup(
        seed=0,
        rounds=3,
        cohort=CohortConfig(),
        client=ClientConfig(**{"lr": 0.1, "batch_size": 2, "loss": "classification"} | client),
        evaluate=EvaluateConfig(),
        method=linear_method(),
        federation=algorithm(Algorithm()),
        holdings=Partition(np.arange(12), np.array([0, 5, 8, 11, 12])),
        labels=labels,
        test=torch.arange(4),
        inputs=Features(features),
        grouping=Grouping(2),
        by_jacobian=False,
        num_classes=2,
    )
    return started(setup)


def algorithm(parts: Algorithm, method: Method | None = None) -> Federation:
    """The federation of four clients with these parts, and FedAvg's for the rest."""
    setting = Setting(ClientConfig(), ("weight",), False, 4)
    whole = fedavg.build(fedavg.Options(name="fedavg"), setting)
    whole = whole._replace(**{name: part for name, part in parts._asdict().items() if part is not None})
    assert whole.sharing is not None
    assert whole.local is not None
    assert whole.combine is not None
    assert whole.server is not None
    roles = roles_of(whole.sharing, method or linear_method())
    return Federation("tried", 4, roles, whole.local, whole.transform, whole.combine, whole.server)


def started(setup: Setup) -> tuple[Setup, rounds.State]:
    adapter, site = torch.zeros(6), Site(Meter(Serial()))
    initial = setup.federation.memory(adapter, setup.client)
    memories = Memories(site.comm, initial, 2**30) if initial else None
    return setup, rounds.State(adapter, setup.federation.server.init(adapter), AdapterTests(setup, site), memories)


def values(setup: Setup) -> torch.Tensor:
    assert isinstance(setup.inputs, Features)
    return setup.inputs.values


def played(setup: Setup, state: rounds.State, number: int, comm: Meter | None = None) -> list[RoundRecord]:
    site = Site(comm or Meter(Serial()))
    state.tests.setup, state.tests.site = setup, site
    return rounds.play(setup, site, state, number)


def play(setup: Setup, state: rounds.State, number: int = 1) -> RoundRecord:
    (record,) = played(setup, state, number)
    return record


def train_alone(setup: Setup, client: int) -> torch.Tensor:
    batches = trainer.make_batches(np.array([client]), setup.holdings, setup.client, setup.seed, 1)
    result = trainer.train(setup.task, Start(torch.zeros(6)), batches)
    return result.updates[0].double()


def test_the_next_adapter_is_the_mean_update_weighted_by_examples() -> None:
    setup, state = four_clients()
    play(setup, state)
    expected = sum(train_alone(setup, client) * size for client, size in enumerate([5, 3, 3, 1])) / 12
    torch.testing.assert_close(state.adapter.double(), expected, rtol=1e-5, atol=1e-7)


def test_round_zero_only_evaluates() -> None:
    setup, state = four_clients()
    record = play(setup, state, 0)
    assert state.adapter.equal(torch.zeros(6))
    assert len(record.clients) == 0
    assert 0 <= record.row["test_accuracy"][0] <= 1
    assert np.isnan(record.row["train_loss"][0])
    assert record.row["uplink_bytes"][0] == 0


def test_a_client_whose_update_is_nan_is_left_out_and_recorded_and_the_run_goes_on() -> None:
    setup, state = four_clients()
    values(setup)[6] = torch.nan  # an example of client 1
    record = play(setup, state)
    assert record.row["num_rejected"][0] == 1
    assert record.clients["weight"].tolist() == [5, 0, 3, 1]
    assert np.isnan(record.clients["update_norm"][1])
    assert record.row["num_clients"][0] == 4
    expected = sum(train_alone(setup, client) * size for client, size in [(0, 5), (2, 3), (3, 1)]) / 9
    torch.testing.assert_close(state.adapter.double(), expected, rtol=1e-5, atol=1e-7)
    assert np.isfinite(record.row["train_loss"][0])
    assert play(setup, state, 2).row["round"][0] == 2


def test_when_nobody_reports_the_adapter_stays_as_it_was() -> None:
    setup, state = four_clients()
    values(setup)[:] = torch.nan
    state.adapter += 1
    record = play(setup, state)
    assert state.adapter.equal(torch.ones(6))
    assert record.row["num_rejected"][0] == 4
    assert np.isnan(record.row["train_loss"][0])


def test_bytes_of_a_round_are_clients_times_payload() -> None:
    setup, state = four_clients()
    record = play(setup, state)
    assert record.row["uplink_bytes"][0] == record.row["downlink_bytes"][0] == 4 * 6 * 4
    assert record.clients["uplink_bytes"].sum() == record.row["uplink_bytes"][0]
    exact_sum, report = (2 * 6 + 1 + 1) * 8, 24 + record.ranks.nbytes + record.clients.nbytes
    assert record.row["collective_bytes"][0] == exact_sum, f"the report of {report} bytes is counted in the next round"
    assert play(setup, state, 2).row["collective_bytes"][0] == exact_sum


def test_the_seconds_of_a_round_add_up() -> None:
    setup, state = four_clients()
    row = play(setup, state).row[0]
    phases = sum(row[f"{phase}_seconds"] for phase in PHASES)
    assert 0 < phases <= row["round_seconds"]
    assert min(row[f"{phase}_seconds"] for phase in ("batch", "train", "sum")) > 0


def test_evaluation_by_the_calendar_and_always_at_the_end() -> None:
    setup, state = four_clients()
    setup = replace(setup, evaluate=EvaluateConfig(every=2))
    measured = [not np.isnan(play(setup, state, number).row["test_accuracy"][0]) for number in range(4)]
    assert measured == [True, False, True, True]


@pytest.mark.parametrize("every", [1, 2])
def test_what_is_tested_during_the_next_round_has_the_same_records(every: int) -> None:
    def records(overlap: bool) -> list[list[RoundRecord]]:
        setup, state = four_clients()
        setup = replace(setup, evaluate=EvaluateConfig(every=every, overlap=overlap))
        return [played(setup, state, number) for number in range(4)]

    at_once, later = records(overlap=False), records(overlap=True)
    assert [len(records) for records in at_once] == [1, 1, 1, 1]
    assert [len(records) for records in later] == ([0, 1, 1, 2] if every == 1 else [0, 2, 0, 2])
    for one, other in zip(chain(*at_once), chain(*later), strict=True):
        for name in one.row.dtype.names:
            if not name.endswith("_seconds"):
                np.testing.assert_array_equal(one.row[name], other.row[name], name)
        assert one.clients["update_norm"].tolist() == other.clients["update_norm"].tolist()


def test_a_client_that_was_left_out_is_not_remembered() -> None:
    """Moments that are not finite would shut it out for ever; with clean data it takes part again."""
    setup, state = four_clients(optimizer_state="keep")
    clean = values(setup)[6].clone()
    values(setup)[6] = torch.nan
    assert play(setup, state, 1).row["num_rejected"][0] == 1
    values(setup)[6] = clean
    assert play(setup, state, 2).row["num_rejected"][0] == 0


@pytest.mark.parametrize(("kind", "count"), [("reset", 0), ("keep", 4)])
def test_moments_are_kept_per_client_when_asked_for(kind: str, count: int) -> None:
    setup, state = four_clients(optimizer_state=kind)
    play(setup, state)
    play(setup, state, 2)
    assert len(state.memories or ()) == count
    if state.memories is not None:
        steps = state.memories.borrow(np.arange(4)).read(np.arange(4))["optimizer.2"]
        assert steps.flatten().tolist() == [6, 4, 4, 2]  # two rounds of 3, 2, 2 and 1 batches


# --- what a client's row says


def test_the_length_of_an_update_is_summed_in_float64() -> None:
    """In float32 a sum of many small squares stops growing."""
    updates = torch.cat([torch.full((1, 1), 2.0**12), torch.full((1, 10_000_000), 2.0**-12)], dim=1)
    assert exact.norms(updates).item() == pytest.approx((2.0**24 + 10_000_000 * 2.0**-24) ** 0.5, rel=1e-14)
    many = torch.full((1, 1), 1e-5).expand(1, 30_000_000)
    assert exact.norms(many).item() == pytest.approx(1e-5 * 30_000_000**0.5, rel=1e-7)


def test_the_length_of_an_update_counts_what_the_client_holds() -> None:
    """Of 3, 4 and 12, a client that holds the first two has trained a length of 5; one that holds all, 13."""
    updates = torch.tensor([[3.0, 4.0, 12.0]] * 2)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert exact.norms(updates, mask).tolist() == [5.0, 13.0]


def test_numbers_that_a_client_does_not_hold_are_in_no_update_norm() -> None:
    """It starts with zeros there, far from the adapter's ones; with a tiny step, what it trains hardly moves."""
    setup, state = four_clients(lr=1e-6)
    mask = torch.tensor([True, True, False, False, True, True])
    setup = replace(
        setup,
        method=replace(setup.method, portions=Portions(lambda clients: mask.expand(len(clients), -1), lambda clients: clients)),
    )
    state.adapter += 1
    lengths = play(setup, state).clients["update_norm"]
    assert (lengths > 0).all()
    assert (lengths < 1e-4).all()


def test_a_client_has_its_share_by_steps_of_the_time_of_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds for clients with 3 and 2 steps, ten for those with 2 and 1."""
    now, train = [0.0], trainer.train

    def slow(*arguments: object) -> object:
        now[0] += 10
        return train(*arguments)

    monkeypatch.setattr(rounds.trainer, "train", slow)
    setup, state = four_clients()
    (record,) = played(setup, state, 1, Meter(Serial(), clock=lambda: now[0]))
    assert record.clients["train_seconds"].tolist() == pytest.approx([6, 4, 20 / 3, 10 / 3])
    assert record.ranks["train_seconds"].tolist() == [20]


# --- what a rank reports


class Listening(Serial):
    """Keeps what rank 0 is told."""

    def __init__(self) -> None:
        super().__init__()
        self.reports: list[RankReport] = []

    def gather(self, data: bytes) -> list[bytes] | None:
        self.reports.append(RankReport.from_bytes(data))
        return super().gather(data)


def test_a_rank_reports_a_digest_of_the_adapter_that_it_holds() -> None:
    setup, state = four_clients()
    comm, right = Listening(), []
    for number in range(3):
        played(setup, state, number, Meter(comm))
        hashed = hashlib.blake2b(state.adapter.numpy().tobytes(), digest_size=8).digest()
        right.append(int.from_bytes(hashed, "little", signed=True))
    assert [report.digest for report in comm.reports] == right
    assert len(set(right)) == 3


def test_a_rank_reports_the_largest_memory_that_its_process_had() -> None:
    """At least what it has now, at most what the system counted, which may be its parent's."""
    now = next(
        int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")
    )
    peak = int(play(*four_clients()).ranks["peak_memory_bytes"][0])
    assert 0.9 * now < peak <= 1.1 * 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# --- when every update is rejected


def test_the_servers_rule_rests_when_every_update_is_rejected() -> None:
    """A rule with momentum would move the adapter even by an update of zeros."""
    momentum = Server(torch.zeros_like, lambda adapter, mean, velocity, now: (adapter + velocity + mean + 1, velocity + mean + 1))
    setup, state = four_clients()
    setup, state = started(replace(setup, federation=algorithm(Algorithm(server=momentum))))
    play(setup, state)
    assert state.accepted_weight == 12
    adapter, velocity = state.adapter.clone(), state.server.clone()
    values(setup)[:] = torch.nan
    play(setup, state, 2)
    assert state.accepted_weight == 0
    assert state.adapter.equal(adapter)
    assert state.server.equal(velocity)


@pytest.mark.parametrize(("epochs", "costs"), [(1, [6, 4, 4, 2]), (3, [18, 12, 12, 6])])
def test_a_client_costs_the_examples_that_it_computes_in_all_epochs(epochs: int, costs: list[int]) -> None:
    """In batches of two, which are filled up: 5, 3, 3 and 1 examples are 3, 2, 2 and 1 batches."""
    clients, measured = rounds.participants(four_clients(epochs=epochs)[0], 1)
    assert (clients.tolist(), measured.tolist()) == ([0, 1, 2, 3], costs)
