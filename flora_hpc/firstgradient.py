"""Before round 0, some clients compute gradients of whole weights, and the initial adapter follows from their mean.

some clients of round 1                    the same on every rank, nothing is sent
  -> the gradient of each, (num_changed,)  on the first batch of its training in round 1, one client at a time
  -> exact sums of each layer              weighted by images; an allreduce for each layer
  -> the optimizer's first step            in float64, each layer on one rank
  -> the layer's tensors                   which this rank sends to all
"""

from dataclasses import replace
from io import BytesIO
from math import prod

import numpy as np
import torch

from flora_hpc import trainer
from flora_hpc.algorithms._algorithm import Local
from flora_hpc.comm.communicator import AgreedError
from flora_hpc.config import ClientConfig
from flora_hpc.exact import ExactSum
from flora_hpc.groups import class_counts
from flora_hpc.lowrank import slices_of
from flora_hpc.methods._method import FirstGradient
from flora_hpc.optimizers import OPTIMIZERS
from flora_hpc.products import floats, one_thread, owned
from flora_hpc.setup import Setup, Site


def initial_adapter(setup: Setup, site: Site) -> torch.Tensor:
    """The initial adapter (num_params,) float32, on the CPU. All ranks call this together.

    Raises AgreedError, on every rank, where no client's gradient is finite.
    """
    method, comm, first = setup.method, site.comm, setup.method.first_gradient
    assert first is not None
    sums = {name: ExactSum(prod(shape)) for name, shape in first.probe.shapes.items()}
    slices = slices_of(first.probe)
    for client in setup.first_clients[comm.rank :: comm.size]:
        row, num_images = gradient(setup, first, int(client), site.device)
        for name, total in sums.items():
            total.add(row[:, slices[name]], torch.tensor([num_images]))
    for total in sums.values():
        comm.allreduce(total.buffer)
    if not all(total.total for total in sums.values()):
        raise AgreedError(
            f"method.name: no gradient of the {len(setup.first_clients):,} clients is finite, and the initial adapter follows from "
            "their mean; look for NaN and infinity in the model's weights and in the data"
        )
    names = list(first.probe.shapes)
    local = [layer_bytes(setup, first, names[number], sums[names[number]]) for number in owned(comm, len(names))]
    streams = [BytesIO(data) for data in comm.allgather(b"".join(local))]
    tensors = {}
    for number, name in enumerate(names):
        for tensor, shape in shapes_of_layer(setup, name).items():
            tensors[tensor] = floats(streams[number % comm.size], prod(shape)).view(shape)
    return method.pack(tensors)


def gradient(setup: Setup, first: FirstGradient, client: int, device: torch.device) -> tuple[torch.Tensor, int]:
    """A client's gradient (1, num_changed) of whole weights on its first batch of round 1, and the images of this batch.

    It is minus the update of one step of SGD with rate 1. The bits depend on the client alone, since it has no neighbours.
    """
    config = setup.client.model_copy(update={"optimizer": "sgd", "lr": 1.0, "weight_decay": 0.0, "momentum": 0.0})
    local = Local(loss=setup.federation.local.loss)
    clients = np.array([client])
    batches = trainer.make_batches(clients, setup.holdings, setup.client, setup.seed, 1, setup.padding_multiple)
    counts = class_counts(setup, batches) if local.loss is not None else None
    one_step = replace(
        batches,
        examples=batches.examples[:1],
        present=batches.present[:1],
        num_steps=np.ones(1, np.int64),
        widths=batches.widths[:1],
    )
    task = setup.task._replace(method=first.probe, config=config, local=local)
    start = trainer.Start(torch.zeros(first.probe.num_params, device=device), counts=counts)
    return trainer.train(task, start, one_step).updates.neg_(), int(one_step.present.sum())


def layer_bytes(setup: Setup, first: FirstGradient, name: str, total: ExactSum) -> bytes:
    """The initial tensors of a layer, float32 in the method's order, from the sum of the gradients of the probe's tensor `name`."""
    with one_thread():
        step = first_step(total.mean(torch.float64).view(first.probe.shapes[name]), setup.client)
        tensors = first.tensors(layer_of(name), step)
        return b"".join(tensors[key].float().contiguous().numpy().tobytes() for key in shapes_of_layer(setup, name))


def first_step(mean: torch.Tensor, config: ClientConfig) -> torch.Tensor:
    """The change that the clients' optimizer makes in its first step along a gradient `mean` (out, in) float64."""
    optimizer, params = OPTIMIZERS[config.optimizer], torch.zeros_like(mean).view(1, -1)
    optimizer.step(params, mean.reshape(1, -1).clone(), optimizer.init(params, config), config)
    return params.view_as(mean)


def layer_of(name: str) -> str:
    """The layer that a tensor belongs to."""
    return name.rpartition(".")[0]


def shapes_of_layer(setup: Setup, name: str) -> dict[str, tuple[int, ...]]:
    """The shapes of the method's tensors of the layer that `name` belongs to, in the method's order."""
    return {key: shape for key, shape in setup.method.shapes.items() if layer_of(key) == layer_of(name)}
