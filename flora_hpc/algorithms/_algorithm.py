"""The interface of an algorithm: five parts of a round, each a few pure functions over tensors with a leading client axis.

    the server's adapter, message        sharing: which tensors are trained, sent, or kept by each client
      -> local training                  local: what a client does beyond the gradient of its loss
      -> rows of numbers per client      transform: what happens to an update on its way to the server
      -> exact sums over clients         combine: their weights, and how means become one direction; or a rule such as a median,
                                         that needs all rows at once
      -> the next adapter                server: what is done with the direction, and what is sent down besides the adapter

No part sees a rank, a file or a clock. All ranks apply the same functions to the same values, so no function draws random numbers
of its own. An algorithm defines some of the parts; the others are those of FedAvg.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

import torch

from flora_hpc.config import ClientConfig

Tensors = Mapping[str, torch.Tensor]
Role = Literal["shared", "private", "frozen"]
ROLES = get_args(Role)


class Setting(NamedTuple):
    """What an algorithm is built for."""

    client: ClientConfig  # options of local training
    names: Sequence[str]  # of the trained tensors, in their order
    paired: bool  # whether every image has a caption of its own instead of a class
    num_registered: int  # clients, of which a round's participants are drawn
    section: str = "algorithm"  # of the configuration, for messages
    num_classes: int | None = None


class Sharing(NamedTuple):
    """Which trained tensors clients send (shared), train and keep for themselves (private), or do not train (frozen).

    `role(name, round)` is the role of a tensor in a round, counted from 1. Roles repeat after `period` rounds. Private tensors have
    the same role in every round.
    """

    role: Callable[[str, int], Role]
    period: int = 1


class Ended(NamedTuple):
    """The end of the local training of a group. All tensors have a leading client axis."""

    updates: torch.Tensor  # (num_clients, num_trained): params at the end minus params at the start
    gradient_sum: torch.Tensor | None  # (num_clients, num_trained), of all steps, if `Local.sums_gradients`
    num_steps: torch.Tensor  # (num_clients, 1)
    message: Tensors  # from the server, (num_trained,) each
    memory: Tensors  # of the clients, (num_clients, num_trained) each


class LocalStep(NamedTuple):
    """One step of local training, after the gradient of the loss is known. All tensors but messages have a client axis.

    `start` is each client's own start of the round: the server's adapter, but in private tensors what the client had kept.
    """

    params: torch.Tensor  # (num_clients, num_trained)
    start: torch.Tensor  # the same at the start of the round; (num_trained,) in `Local.personal`
    message: Tensors  # from the server, (num_trained,) each
    memory: Tensors  # of the clients, (num_clients, num_trained) each


Gradient = Callable[[torch.Tensor, LocalStep], torch.Tensor]  # gradient (num_clients, num_trained), step -> another gradient
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Pruning(NamedTuple):
    """When a client drops the last of its ranks, for a method whose clients have ranks.

    The last ranks of a client of rank r are those from floor(share r) on, without the first `least_rank`, in all layers. Their size
    is the sum over layers of |B| |A| of these ranks. `penalty` times this size is added to the loss. Where the size is smaller
    after local training than before, the client drops these ranks: it neither sends them nor receives or trains them any more.
    """

    share: float
    penalty: float
    least_rank: int = 1


class Local(NamedTuple):
    """What a client does in its local training beyond the gradient of its loss.

    `gradient` changes the gradient of a step, before the optimizer; a pull towards `step.start` is one towards the client's own
    start, which has its private tensors. `loss` replaces the loss of a step: like those of
    `flora_hpc.losses`, and with counts (num_clients, num_classes) of the client's examples by class as a fourth argument.
    `end(ended) -> rows, memory` makes the rows that clients send besides their update, (num_clients, n) each, and what they
    remember, (num_clients, num_trained) each. Rows are averaged with equal weights. Memories start with zeros.

    With `personal`, each client also trains a second model of its own: from where it was at the end of its last round (at first,
    from the initial adapter), with this change of gradients, in which `start` is the server's adapter.

    With `pruning`, clients drop ranks that they do not need.
    """

    gradient: Gradient | None = None
    loss: Loss | None = None
    end: Callable[[Ended], tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] | None = None
    memory: tuple[str, ...] = ()  # names of what a client remembers from one round to the next
    needs: tuple[str, ...] = ()  # names of the server's messages
    sends: tuple[str, ...] = ()  # names of the rows of `end`
    sums_gradients: bool = False
    personal: Gradient | None = None
    pruning: Pruning | None = None


class Transform(NamedTuple):
    """What happens to updates on their way to the server: clipping, encoding and decoding.

    `apply(rows, memory) -> rows, memory, num_bytes` takes updates (num_clients, n) and what the clients remember, (num_clients, n)
    each; it returns the updates as the server decodes them, the new memories, and the encoded bytes (num_clients,) int64.
    """

    apply: Callable[[torch.Tensor, Tensors], tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]]
    memory: tuple[str, ...] = ()


class LayerMeans(NamedTuple):
    """The weighted means over clients of one layer's low-rank adapter, with the starts of the round added, in float64."""

    product: torch.Tensor  # (out, in), of B A; padded with zeros where a client holds fewer ranks
    a: torch.Tensor  # (rank, in), of A
    b: torch.Tensor  # (out, rank), of B
    stacks: tuple[torch.Tensor, torch.Tensor] | None = None  # (out, n) and (n, in), whose product is `product`, if n is below both


class Combine(NamedTuple):
    """How the updates of a cohort become one direction, by exact sums.

    `weights(num_examples) -> weights`, both (num_clients,) int64 and at least 1. `prepare(update, num_steps) -> rows` makes the
    rows that are averaged with these weights: `update` (num_clients, n), and others that are sent besides it. `finish(means, now)`
    computes the direction (n,) from their means.

    `factors(means) -> A (rank, in), B (out, rank)` computes a layer's next adapter, on one rank. What `finish` and the server's
    part make of these numbers is then not used. With `by_holder`, clients' rows have zeros where a client holds nothing, and
    `means["held"]` (n,) is the weighted share of clients that hold a number; it is absent where all clients hold all. With
    `by_norm`, clients' rows are multiplied by the norm of the client's B A of their layer, and `means["norms"]` (n,) has the means
    of these norms; numbers outside of layers count as of norm 1. With `by_rank`, each client sends this share of all ranks of all
    layers alone, those that change its B A most (`lowrank.important`); the other numbers of its rows are zeros, and `means["held"]`
    (n,) is the weighted share of clients that sent a number.

    With `fresh`, each round begins with new initial factors, drawn from the seed. With `merged_ranks`, what the next factors leave
    of the mean product, mean B A - B A, is added to the layer's frozen weight. `merged_ranks(num_clients)` says how many times the
    adapter's rank this change has at most, for byte counts.
    """

    weights: Callable[[torch.Tensor], torch.Tensor]
    finish: Callable[[Tensors, "Now"], torch.Tensor]
    prepare: Callable[[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]] | None = None
    sends: Mapping[str, int] = MappingProxyType({})  # the numbers of each row that `prepare` adds to the update
    factors: Callable[[LayerMeans], tuple[torch.Tensor, torch.Tensor]] | None = None
    by_holder: bool = False
    by_norm: bool = False
    by_rank: float | None = None
    fresh: bool = False
    merged_ranks: Callable[[int], int] | None = None

    @property
    def replaces(self) -> bool:
        """Whether the factors of all layers are replaced at the end of a round."""
        return self.fresh or self.factors is not None


class CombineRows(NamedTuple):
    """How the updates of a cohort become one direction, by a rule that needs all of them at once, such as a median.

    `columns(rows, num_clients)` computes some columns of the direction, (width,) float64, from the same columns of all updates,
    (num_clients, width) float64 in the order of clients. It treats all columns alike, since each rank computes some of them.
    With `mix`, its rows (num_rows, width) are mixtures of updates: `mix(squares)` computes their coefficients, (num_rows,
    num_clients) float64, from squared distances between updates, (num_clients + 1, num_clients + 1) float64, of which the last row
    and column are distances to zero. With `measure`, `mix` gets another table (k, num_clients): the sum over all columns of
    `measure(rows)`, for rows (num_clients, width) float64 of some columns.
    With `needs_server`, the server trains an update of its own in every round, on as many training images as the option
    `server_images` says, which no client has. This update is one more row, the last one of all.
    `fault(num_clients)` says what is wrong with a round of so many clients, in one sentence, or None. A round may have fewer, as
    updates that are not finite are left out; the rule must then do what it can. All clients have the same weight.
    """

    columns: Callable[[torch.Tensor, int], torch.Tensor]
    mix: Callable[[torch.Tensor], torch.Tensor] | None = None
    fault: Callable[[int], str | None] = lambda num_clients: None
    measure: Callable[[torch.Tensor], torch.Tensor] | None = None
    needs_server: bool = False

    @property
    def prepare(self) -> None:
        """Updates are sent as they are; this and what follows are what `Combine` has, too."""

    @property
    def sends(self) -> Mapping[str, int]:
        """Nothing is sent besides the update."""
        return {}

    @property
    def by_holder(self) -> bool:
        """Every client sends all numbers."""
        return False

    @property
    def by_norm(self) -> bool:
        """No update is multiplied by the norm of its product."""
        return False

    @property
    def by_rank(self) -> None:
        """Every client sends all ranks."""

    @property
    def fresh(self) -> bool:
        """The factors of layers go on from round to round."""
        return False

    @property
    def merged_ranks(self) -> None:
        """Frozen weights stay as they are."""

    @property
    def replaces(self) -> bool:
        """No factors are replaced."""
        return False

    @staticmethod
    def weights(num_examples: torch.Tensor) -> torch.Tensor:
        """The same weight for every client."""
        return torch.ones_like(num_examples)


class Now(NamedTuple):
    """What the server knows of a round."""

    round: int
    num_clients: int  # that were added up
    num_registered: int
    weight: int  # sum of their weights
    means: Tensors  # of the rows that clients sent besides their update, each (n,)


class Server(NamedTuple):
    """What the server does with a direction, and what it sends besides the adapter.

    `init(adapter) -> state`; `apply(adapter, direction, state, now) -> adapter, state`; `message(state)` is sent to the clients of
    the next round. Adapters, directions and messages are (num_params,) float32. A resumed run gets back the state alone, so the
    state holds whatever the server remembers: a tensor, a number, None, or a tuple, list or dictionary of these.
    """

    init: Callable[[torch.Tensor], Any]
    apply: Callable[[torch.Tensor, torch.Tensor, Any, Now], tuple[torch.Tensor, Any]]
    message: Callable[[Any], dict[str, torch.Tensor]] = lambda state: {}
    sends: tuple[str, ...] = ()  # names of the messages
    takes: tuple[str, ...] = ()  # names of the rows of clients that it needs, in `Now.means`


class Algorithm(NamedTuple):
    """The parts that an algorithm defines; FedAvg's stand for those that it leaves out."""

    sharing: Sharing | None = None
    local: Local | None = None
    transform: Transform | None = None
    combine: Combine | CombineRows | None = None
    server: Server | None = None
    together: tuple[str, ...] = ()  # parts that mean nothing beside those of another algorithm, FedAvg's included
    warnings: tuple[str, ...] = ()  # sentences that a user must read before round 0
