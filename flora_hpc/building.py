"""Build the Setup of all rounds from a Config: clients, method, federation and the size of groups."""

from dataclasses import replace
from functools import partial
from typing import cast

import numpy as np
import torch

from flora_hpc import assembly, firststep, groupsize, misfits, plugins
from flora_hpc.algorithms import _algorithm
from flora_hpc.clip import precision
from flora_hpc.clip.load import Clip
from flora_hpc.cohort import Grouping
from flora_hpc.comm import devices
from flora_hpc.config import Config
from flora_hpc.data import checks, clientcolumn, holdings, triggered, twins
from flora_hpc.data.holdings import PartitionOptions
from flora_hpc.data.images import Dataset
from flora_hpc.errors import UserError
from flora_hpc.exact import MAX_CLIENTS
from flora_hpc.federation import Federation
from flora_hpc.methods._method import Method, Setting
from flora_hpc.plugins import BaseOptions
from flora_hpc.setup import Setup

MANY_SIZES = 10_000  # clients whose numbers of steps are compared before round 0


def make_setup(config: Config, dataset: Dataset, clip: Clip, device: torch.device, room: devices.Room) -> Setup:
    """Make the setup of all rounds, without inputs. Raises UserError for parts that do not fit together."""
    images = dataset.images
    server, train = holdings.for_server(dataset.train, config.server_images, config.seed)
    holders = holdings.make(cast(PartitionOptions, config.partition), images, train, config.seed, dataset.test)
    method = build_method(config.method, config.model.precision, dataset, clip, holders)
    if (fault := config.cohort_fault(holders.num_clients)) is not None:  # for a partition whose file decides num_clients
        raise UserError(fault)
    for key in ("per_client", "personal"):
        if getattr(config.evaluate, key) and dataset.paired:
            raise UserError(f"evaluate.{key}: tests clients on their mix of classes, but pairs have none; leave it out")
    num_clients = config.cohort.num_clients(holders.num_clients)
    if num_clients > MAX_CLIENTS:
        raise UserError(
            f"cohort: {num_clients:,} clients in a round are more than the {MAX_CLIENTS:,} that an exact sum holds; lower it"
        )
    parts = make_federation(config, dataset, method, holders)
    size, _ = group_size(config, dataset, clip, method, holders, room, parts)
    labels, backdoor = images.labels, dataset.test[:0]
    if parts.trigger is not None:
        labels, backdoor = triggered.label_rows(labels, parts.trigger.target, dataset.test)
    return Setup(
        seed=config.seed,
        rounds=config.rounds,
        cohort=config.cohort,
        client=config.client,
        evaluate=config.evaluate,
        method=method,
        federation=parts,
        holdings=holders,
        grouping=Grouping(size.clients, alike=method.per_example, fixed=room.gpu),
        num_classes=len(dataset.captions),
        by_jacobian=by_jacobian(config, clip, method, num_clients, room.gpu, parts),
        labels=torch.from_numpy(labels).to(device),
        test=torch.from_numpy(dataset.test).to(device),
        validation=torch.from_numpy(dataset.validation).to(device),
        server=server,
        backdoor=torch.from_numpy(backdoor).to(device),
        most_client_rows=config.records.most_clients,
    )


def make_federation(config: Config, dataset: Dataset, method: Method, holders: holdings.Holdings) -> Federation:
    """Build the algorithm's parts. Raises UserError for parts that do not go together, or not with the method or the data."""
    num_classes = len(dataset.captions)
    names = tuple(name for name in method.shapes if name not in method.constants)
    setting = _algorithm.Setting(config.client, names, dataset.paired, holders.num_clients, num_classes=num_classes)
    parts = assembly.build(config, method, setting)
    some = np.arange(0, holders.num_clients, max(1, holders.num_clients // MANY_SIZES))
    steps = -(-holders.sizes(some) // config.client.batch_size) * config.client.epochs
    warnings = [*parts.warnings, *misfits.warn_of_unequal_steps(parts, int(steps.min()), int(steps.max()))]
    warnings += misfits.warn_of_attackers(parts, config)
    if config.evaluate.personal and not (parts.keeps_models or config.evaluate.fine_tune_epochs or method.portions):
        warnings.append(
            f"evaluate.personal: with {parts.name} no client has a model of its own, so personal and global accuracy are equal; "
            "set evaluate.fine_tune_epochs, or take an algorithm with own models, such as ditto or fedsa_lora"
        )
    if parts.num_private and not config.evaluate.personal:
        warnings.append(
            f"algorithm: with {parts.name} the server's adapter lacks what each client keeps for itself, and its accuracy with it; "
            "set evaluate.personal: true to test the clients' own models"
        )
    return replace(parts, warnings=tuple(warnings))


def group_size(
    config: Config,
    dataset: Dataset,
    clip: Clip,
    method: Method,
    holders: holdings.Holdings,
    room: devices.Room,
    parts: Federation,
) -> tuple[groupsize.GroupSize, groupsize.Load]:
    """The largest group of clients, with the limit that decides it, and the memory that one client needs."""
    client, num_clients = config.client, config.cohort.num_clients(holders.num_clients)
    jacobian = by_jacobian(config, clip, method, num_clients, room.gpu, parts)
    one_step = client.epochs == 1 and holders.largest <= client.batch_size
    trains_more = parts.local.personal is not None or config.evaluate.fine_tune_epochs > 0  # by backward passes
    encodes = trains_more or not (jacobian and one_step)
    load = groupsize.load(clip, method, client, len(dataset.captions), encodes)
    if client.group_size:
        return groupsize.GroupSize(client.group_size, "as client.group_size says"), load
    free = room._replace(num_bytes=max(0, room.num_bytes - firststep.num_bytes(method, jacobian)))
    return groupsize.choose(num_clients, load, free), load


def by_jacobian(config: Config, clip: Clip, method: Method, num_clients: int, on_gpu: bool, parts: Federation) -> bool:
    """Whether a round's `num_clients` compute their first step with a Jacobian. Raises UserError if requested but impossible."""
    text = groupsize.tower(getattr(clip.model, "text", clip.model))
    backward_flops = 24 * text.blocks * text.width**2  # as many as forwards: weights are frozen
    return firststep.choose(config.client.first_step, method, on_gpu, num_clients, backward_flops, parts.num_private > 0)


def build_method(options: BaseOptions, number_format: str, dataset: Dataset, clip: Clip, holders: holdings.Holdings) -> Method:
    """Build the method of `options`, and convert the frozen layers of `clip` to `number_format` (model.precision).

    Raises UserError when the method does not fit the model, the data or its options.
    """
    column = partial(clientcolumn.read, holders, dataset.images)
    setting = Setting(clip, dataset.wordings, dataset.captions, holders, dataset.images.labels, dataset.paired, column)
    method = plugins.build("methods", options, Method, setting)
    tokens = clip.tokenize(list(method.prompts)) if method.prompts else setting.tokens
    costs = method.costs
    text, image = costs.text_positions + costs.caption_positions > 0, costs.image_positions > 0
    precision.lower(number_format, clip.model, clip.name, options.name, set(method.shapes), text, image)
    return replace(method, paired=dataset.paired, warnings=warn_of_equal_captions(dataset, tokens))


def warn_of_equal_captions(dataset: Dataset, tokens: torch.Tensor) -> tuple[str, ...]:
    """Warnings about captions with the same `tokens` (num_captions, context_length), which the model cannot tell apart.

    Raises UserError where equal captions belong to two classes.
    """
    alike = checks.alike(twins.marks(tokens.int()).tolist())
    if not alike:
        return ()
    first, other = alike[0]
    length, most = int(tokens[first].argmax()) + 1, tokens.shape[1]
    shared = f"the same {length} tokens for the model" + (f", which cuts captions at {most}" if length == most else "")
    if not dataset.paired:
        raise UserError(checks.not_told_apart(dataset, alike, shared))
    return (
        f"{len(alike):,} of {len(dataset.captions):,} captions have the same tokens as another one, such as "
        f"'{dataset.captions[first]}' and '{dataset.captions[other]}' ({shared}), so that only one of them can win",
    )
