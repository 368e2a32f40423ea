"""Algorithms against numbers from elsewhere, in float64, on the pure functions of their parts.

The numbers of FedAvg, FedAvgM, FedYogi and FedAdagrad are what flwr 1.42.0 (Flower) computes for these inputs; they were recorded,
since that package is not a dependency. Flower's FedAdam corrects the bias with the exponent round + 1; the numbers of FedAdam here
are the paper's. The other numbers are worked out from the formulas of the papers.
"""

from typing import Any

import pytest
import torch

from flora_hpc.algorithms._algorithm import Algorithm, Combine, Ended, LocalStep, Now, Server
from flora_hpc.config import ClientConfig
from flora_hpc.exact import ExactSums
from tests.pure_rounds import Client, Federated, build, mean, part, whole

CLOSE = {"rtol": 0, "atol": 1e-9}
START = (1, -2, 0.5, 3)
EXAMPLES = torch.tensor([10, 30, 60])
UPDATES = (  # of three clients in two rounds
    ((0.10, -0.20, 0, 0.40), (-0.30, 0.20, 0.10, 0), (0.05, 0.60, -0.10, 0.20)),
    ((0.02, 0.01, -0.30, 0.10), (0.04, -0.05, 0.20, -0.10), (-0.08, 0.30, 0.10, 0)),
)


def double(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(actual: torch.Tensor, expected: Any) -> None:
    torch.testing.assert_close(actual, double(expected), **CLOSE)


def direction(algorithm: Algorithm, updates: torch.Tensor, num_examples: torch.Tensor, num_steps: torch.Tensor) -> torch.Tensor:
    """The direction of a round with these updates (num_clients, n)."""
    combine = part(whole(algorithm).combine, Combine)
    weights = combine.weights(num_examples)
    rows = {"update": updates} if combine.prepare is None else combine.prepare(updates, num_steps)
    means = {name: mean(values, weights) for name, values in rows.items()}
    result: torch.Tensor = combine.finish(means, Now(1, len(updates), len(updates), int(weights.sum()), means))
    return result


# --- servers: two rounds of three clients


SERVERS: dict[str, tuple[str, dict[str, float], tuple[tuple[float, ...] | None, tuple[float, ...]]]] = {
    "fedavg": ("fedavg", {}, ((0.95, -1.6, 0.47, 3.16), (0.916, -1.434, 0.56, 3.14))),
    "fedavgm": ("fedavgm", {"momentum": 0.9}, ((0.95, -1.6, 0.47, 3.16), (0.871, -1.074, 0.533, 3.284))),
    "fedadam, v0 = 0": (
        "fedadam",
        {"lr": 0.1, "tau": 1e-3},
        (
            (0.916666666667, -1.902439024390, 0.425, 3.094117647059),
            (0.804223602751, -1.783225784297, 0.485102527026, 3.166866523019),
        ),
    ),
    "fedadam, v0 = tau^2": (
        "fedadam",
        {"lr": 0.1, "tau": 1e-3, "v0": 1e-6},
        (
            (0.918006425798, -1.902468457712, 0.427896681006, 3.093946842595),
            (0.806841562242, -1.783285909923, 0.487705123401, 3.166565718438),
        ),
    ),
    "fedyogi, v0 = 0": (
        "fedyogi",
        {"lr": 0.01, "tau": 1e-3},
        (
            (0.991666666667, -1.990243902439, 0.4925, 3.009411764706),
            (0.980455405697, -1.978372386376, 0.498507533458, 3.016652845484),
        ),
    ),
    "fedyogi, v0 = tau^2": (
        "fedyogi",
        {"lr": 0.01, "tau": 1e-3, "v0": 1e-6},
        (None, (0.980719874296, -1.978378451572, 0.498769982209, 3.016622517245)),
    ),
    "fedadagrad": (
        "fedadagrad",
        {"lr": 0.1, "tau": 1e-3},
        (
            (0.901960784314, -1.900249376559, 0.403225806452, 3.099378881988),
            (0.846644630052, -1.862007345256, 0.497104567230, 3.087051857489),
        ),
    ),
}


@pytest.mark.parametrize("case", SERVERS)
def test_two_rounds_of_a_server(case: str) -> None:
    name, options, expected = SERVERS[case]
    algorithm = build(name, **options)
    server, adapter = part(whole(algorithm).server, Server), double(START)
    state = server.init(adapter)
    for number, updates in enumerate(UPDATES):
        mean_update = direction(algorithm, double(updates), EXAMPLES, torch.ones(3, 1))
        adapter, state = server.apply(adapter, mean_update, state, Now(number + 1, 3, 3, 100, {}))
        if expected[number] is not None:
            close(adapter, expected[number])


def test_fedavgm_is_sgd_of_torch_with_the_negative_mean_update_as_gradient() -> None:
    server = part(build("fedavgm", momentum=0.9, lr=0.7).server, Server)
    adapter = double(START)
    weight = torch.nn.Parameter(adapter.clone())
    optimizer, state = torch.optim.SGD([weight], lr=0.7, momentum=0.9), server.init(adapter)
    for updates in UPDATES * 2:
        update = mean(double(updates), EXAMPLES)
        weight.grad = -update
        optimizer.step()
        adapter, state = server.apply(adapter, update, state, Now(1, 3, 3, 100, {}))
        torch.testing.assert_close(adapter, weight.detach(), **CLOSE)


# --- local training: two clients with one number x, their gradients x - 1 and 3 (x + 1), two steps of SGD


SCALARS = {0: Client(1, lambda number: [lambda x: x - 1] * 2), 1: Client(1, lambda number: [lambda x: 3 * (x + 1)] * 2)}


def scalars(name: str, **options: float) -> Federated:
    return Federated(build(name, **options), double([0]), lr=0.1, num_registered=2)


def remembered(federated: Federated, name: str) -> list[float]:
    return [federated.memories[client][f"local.{name}"].item() for client in SCALARS]


@pytest.mark.parametrize(
    ("name", "options", "adapters", "limit"),
    [
        ("fedavg", {}, (-0.16, -0.264, -0.3316), -0.457142857143),
        ("fedprox", {"mu": 1}, (-0.15, -0.2505, -0.317835), -0.454545454545),
    ],
)
def test_fedavg_and_fedprox_end_beside_the_optimum(
    name: str, options: dict[str, float], adapters: tuple[float, ...], limit: float
) -> None:
    """The optimum is -0.5."""
    federated = scalars(name, **options)
    for number, adapter in enumerate(adapters):
        federated.play(number + 1, SCALARS)
        close(federated.adapter, [adapter])
    for number in range(4, 201):
        federated.play(number, SCALARS)
    close(federated.adapter, [limit])


def test_scaffold_reaches_the_optimum() -> None:
    federated = scalars("scaffold")
    expected = (
        (-0.16, 0.8, -0.95, 2.55),
        (-0.2815, 0.6075, -1.1895, 2.4045),
        (-0.360945, 0.397225, -1.307275, 2.101725),
    )
    for number, values in enumerate(expected):
        federated.play(number + 1, SCALARS)
        assert [federated.adapter.item(), federated.server.item(), *remembered(federated, "control")] == pytest.approx(
            values, rel=0, abs=1e-9
        )
    for number in range(4, 201):
        federated.play(number, SCALARS)
    close(federated.adapter, [-0.5])


def test_feddyn_reaches_the_optimum() -> None:
    federated = scalars("feddyn", alpha=1)
    expected = ((-0.3, 0.15, -0.18, 0.48), (-0.5076, 0.1788, -0.3816, 0.7392), (-0.6018, 0.1365, -0.58428, 0.85728))
    for number, values in enumerate(expected):
        federated.play(number + 1, SCALARS)
        assert [federated.adapter.item(), federated.server.item(), *remembered(federated, "h")] == pytest.approx(
            values, rel=0, abs=1e-9
        )
    for number in range(4, 401):
        federated.play(number, SCALARS)
    close(federated.adapter, [-0.5])


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
def test_memories_of_some_participants_lead_to_the_optimum_too(name: str) -> None:
    """In turn one of the two clients takes part: the server divides by the registered clients."""
    federated = scalars(name, **({"alpha": 5} if name == "feddyn" else {"lr": 0.5}))
    for number in range(1, 2001):
        federated.play(number, {number % 2: SCALARS[number % 2]})
    close(federated.adapter, [-0.5])


def test_the_mean_gradient_of_scaffold_is_option_two_of_its_paper_under_sgd() -> None:
    """c_i - c + (x - y_i) / (steps * lr), with other numbers of steps for each client, some of which take part."""
    generator, lr = torch.Generator().manual_seed(0), 0.05
    matrices, targets = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    clients = {
        i: Client(1, lambda number, i=i: [lambda x: matrices[i] @ matrices[i].T @ x - targets[i, 0]] * (i + 2)) for i in range(3)
    }
    federated = Federated(build("scaffold"), double(START), lr, 3, {"weight": 4})
    for number in range(1, 6):
        some = {i: clients[i] for i in range(3) if (i + number) % 3}
        before = {i: federated.memory(i)["local.control"] for i in some}
        adapter, control = federated.adapter, federated.server
        ends = {}
        for i, client in some.items():
            rows, _ = federated.train(number, i, client, {"control": control})
            ends[i] = adapter + rows["update"]
        federated.play(number, some)
        for i in some:
            option_two = before[i] - control + (adapter - ends[i]) / ((i + 2) * lr)
            torch.testing.assert_close(federated.memories[i]["local.control"], option_two, **CLOSE)


def test_ditto_pulls_a_clients_own_model_towards_the_adapter() -> None:
    """Worked out: v = 0 - 0.1 (-1 + 0.5 (0 - 0)) = 0.1, then 0.1 - 0.1 (-0.9 + 0.5 (0.1 - 0)) = 0.185."""
    federated = scalars("ditto", weight=0.5)
    federated.play(1, SCALARS)
    close(federated.adapter, [-0.16])
    close(federated.memories[0]["personal"], [0.185])
    federated.play(2, SCALARS)  # 0.185 - 0.1 (-0.815 + 0.5 (0.185 + 0.16)) = 0.24925
    first = 0.185 - 0.1 * (0.185 - 1 + 0.5 * (0.185 + 0.16))
    close(federated.memories[0]["personal"], [first - 0.1 * (first - 1 + 0.5 * (first + 0.16))])


# --- losses


SCORES, COUNTS, LABELS = [[[2, 1, 0]]], [[16, 1, 81]], torch.tensor([[1]])


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("logit_calibration", {"denominator": "all"}, 1.8242622155),
        ("logit_calibration", {"denominator": "others"}, 1.6483163326),
        ("logit_calibration", {"tau": 0}, 1.4076059644),
        ("logit_adjustment", {}, 4.3079863678),
        ("logit_adjustment", {"tau": 0}, 1.4076059644),
    ],
)
def test_a_loss_with_counts_of_classes(name: str, options: dict[str, Any], expected: float) -> None:
    """With tau = 0 it is cross entropy. A class without examples, and an example that is padding, change nothing."""
    local = build(name, **options).local
    assert local is not None
    assert local.loss is not None
    close(local.loss(double(SCORES), LABELS, torch.tensor([[True]]), double(COUNTS)), [expected])
    scores, counts = double([[[2, 1, 0, 7], [9, 9, 9, 9]]]), double([[16, 1, 81, 0]])
    close(local.loss(scores, torch.tensor([[1, 0]]), torch.tensor([[True, False]]), counts), [expected])


@pytest.mark.parametrize("denominator", ["all", "others"])
def test_gradients_of_a_calibrated_loss_are_finite_without_a_class(denominator: str) -> None:
    local = build("logit_calibration", denominator=denominator).local
    assert local is not None
    assert local.loss is not None
    for counts in ([[16, 1, 0]], [[0, 5, 0]]):  # the second client has one class alone
        scores = double(SCORES).requires_grad_()
        local.loss(scores, LABELS, torch.tensor([[True]]), double(counts)).sum().backward()
        assert scores.grad is not None
        assert scores.grad.isfinite().all()
        assert scores.grad[0, 0, 2] == 0


# --- FedNova


NOVA = double([[-0.2, 0.4], [-1.2, 0.6]]), torch.tensor([1, 1]), torch.tensor([[2.0], [6.0]])


@pytest.mark.parametrize(
    ("client", "options", "step"),
    [
        ({}, {}, (-0.6, 0.6)),
        ({"momentum": 0.9}, {}, (-0.7062034638, 0.8892144043)),
        ({"lr": 0.5}, {"mu": 0.1}, None),
    ],
)
def test_fednova_divides_by_what_a_client_did(
    client: dict[str, float], options: dict[str, float], step: tuple[float, float] | None
) -> None:
    algorithm = build("fednova", client=ClientConfig(optimizer="sgd", **client), **options)
    result = direction(algorithm, *NOVA)
    if step is None:  # a = 1.95 and 5.2981621875
        a = double([[1.95], [5.2981621875]])
        step = (a.mean() * (NOVA[0] / a).mean(0)).tolist()
    torch.testing.assert_close(result, double(step), rtol=0, atol=1e-9)
    close(direction(build("fedavg"), *NOVA), (-0.7, 0.5))


@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0, 1000.0])
def test_the_step_of_fednova_does_not_depend_on_where_the_adapter_is(scale: float) -> None:
    """Clients end at params, not at updates. Averaging models with weights that do not add up to one gives 12.73 for 9.4."""
    adapter, (updates, *rest) = double([scale, -scale]), NOVA
    ends = adapter + updates
    close(adapter + direction(build("fednova"), ends - adapter, *rest), (scale - 0.6, 0.6 - scale))


@pytest.mark.parametrize(
    ("num_examples", "num_steps", "momentum"), [(25_000, 1_563, 0.0), (50_000, 391, 0.9), (10**6, 10**5, 0.99)]
)
def test_a_client_with_many_examples_and_steps_is_not_rejected_for_its_normalizer(
    num_examples: int, num_steps: int, momentum: float
) -> None:
    """Its a_i times its examples is beyond what an exact sum takes."""
    config = ClientConfig(optimizer="sgd", momentum=momentum)
    combine = part(build("fednova", client=config).combine, Combine)
    assert combine.prepare is not None
    rows = combine.prepare(torch.full((1, 2), 1e-3), torch.tensor([[float(num_steps)]]))
    sums, weights = ExactSums({"update": 2, "normalizer": 1}), torch.tensor([num_examples])
    assert sums.add(rows, dict.fromkeys(rows, weights)).all()
    result = combine.finish(sums.means(), Now(1, 1, 1, num_examples, {}))
    torch.testing.assert_close(result, torch.full((2,), 1e-3), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("momentum", "mu"), [(0.0, 0.0), (0.9, 0.0), (0.0, 0.3), (0.9, 0.3)])
def test_the_normalizer_is_what_constant_gradients_add_up_to(momentum: float, mu: float) -> None:
    """An update, divided by -lr a, is then the gradient itself. Also with momentum and a proximal term at once."""
    lr, config = 0.1, ClientConfig(optimizer="sgd", lr=0.1, momentum=momentum)
    updates = []
    for num_steps in (1, 2, 7):
        weight = torch.nn.Parameter(double([0.0]))
        optimizer = torch.optim.SGD([weight], lr=lr, momentum=momentum)
        for _ in range(num_steps):
            weight.grad = 1 + mu * weight.detach()
            optimizer.step()
        updates.append(weight.detach())
    combine = part(build("fednova", client=config, mu=mu).combine, Combine)
    assert combine.prepare is not None
    rows = combine.prepare(torch.stack(updates), torch.tensor([[1.0], [2.0], [7.0]]))
    close(rows["update"], [[-lr]] * 3)


# --- top-k


def test_top_1_with_error_feedback() -> None:
    transform = build("top_k", fraction=0.25).transform
    assert transform is not None
    memory, total = {"error": double([[0, 0, 0, 0]])}, double([[0, 0, 0, 0]])
    sent_rows = []
    for update in ([0.5, -0.2, 0.1, 0.05], [0.1, -0.2, 0.1, 0.05], [0.1, -0.2, 0.1, 0.3]):
        sent, memory, num_bytes = transform.apply(double([update]), memory)
        total = total + sent
        sent_rows.append(sent[0].tolist())
        assert num_bytes.tolist() == [8]
    close(double(sent_rows), [[0.5, 0, 0, 0], [0, -0.4, 0, 0], [0, 0, 0, 0.4]])
    close(memory["error"], [[0.2, -0.2, 0.3, 0]])
    close(total + memory["error"], [[0.7, -0.6, 0.3, 0.4]])


# --- what a step sees


def test_a_pull_is_zero_at_the_start() -> None:
    params, start = double([[1, 2], [3, 4]]), double([1, 2])
    for name in ("fedprox", "feddyn"):
        local = build(name, **({"mu": 0.5} if name == "fedprox" else {"alpha": 0.5})).local
        assert local is not None
        assert local.gradient is not None
        step = LocalStep(params, start, {}, dict.fromkeys(local.memory, torch.zeros_like(params)))
        close(local.gradient(torch.zeros_like(params), step), [[0, 0], [1, 1]])


def test_scaffold_sends_the_change_of_its_control_variate() -> None:
    local = build("scaffold").local
    assert local is not None
    assert local.end is not None
    ended = Ended(double([[1]]), double([[6]]), double([[3]]), {"control": double([5])}, {"control": double([[0.5]])})
    sent, memory = local.end(ended)
    close(sent["control"], [[1.5]])
    close(memory["control"], [[2]])
