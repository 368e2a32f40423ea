"""Smaller jobs of all ranks together: test a finished run's adapter, compute all features."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from flora_hpc import building, embed, evaluate, experiment
from flora_hpc.clip import adapters
from flora_hpc.clip import identity as model_identity
from flora_hpc.clip.load import Clip, load
from flora_hpc.comm.communicator import Communicator, same_everywhere, together
from flora_hpc.comm.launch import Launch
from flora_hpc.config import Config
from flora_hpc.data import checks, holdings
from flora_hpc.data.images import Dataset
from flora_hpc.data.inputs import Features, Inputs
from flora_hpc.identity import of_data
from flora_hpc.methods._method import Method
from flora_hpc.setup import find_site


def embed_all(config: Config, comm: Communicator, launch: Launch, progress: embed.Progress) -> tuple[Dataset, embed.Embedded]:
    """Compute and store the features of all images that `config` names, on all ranks of `comm`. No method is needed.

    Raises UserError, on every rank, also when images cannot be decoded and `data.damaged` does not say to skip them; the features
    of all other images are stored even then.
    """
    site = find_site(config, comm, launch)
    dataset, clip = together(comm, lambda: (experiment.dataset(config), load(config.model, config.seed, site.device)))
    weights = {"model weights": model_identity.module(clip.model)}
    same_everywhere(comm, {"configuration": config.model_dump_json()} | weights | of_data(dataset))
    embedded = embed.embed(dataset.images, dataset.name, experiment.work(clip, config, site, progress))
    together(comm, lambda: experiment.drop_damaged(dataset, embedded.damaged, config))
    return dataset, embedded


def evaluate_adapter(
    config: Config, adapter: Path, comm: Communicator, launch: Launch, progress: embed.Progress
) -> tuple[str, int, int]:
    """Test a finished run's adapter on the data that `config` names, on all ranks of `comm`.

    Returns the dataset's name, the number of test images with the highest score for their own class, and the number of test
    images. Raises UserError, on every rank, when the adapter does not belong to the model, the method or the classes.
    """
    site = find_site(config, comm, launch)
    dataset, clip, method = together(comm, lambda: build_for_test(config, site.device))
    if (shapes := together(comm, lambda: adapters.merged_shapes(adapter))) is not None:
        method = replace(method, shapes=shapes)
    trained = together(
        comm, lambda: adapters.load(adapter, method.shapes, clip.name, method.alpha, dataset.wordings if method.per_class else ())
    )
    dataset, inputs, features = inputs_for_test(dataset, method, experiment.work(clip, config, site, progress))
    dataset = together(comm, lambda: experiment.drop_damaged(dataset, features.damaged, config))
    flat = method.pack(trained).to(site.device)
    labels, test = (torch.from_numpy(array).to(site.device) for array in (dataset.images.labels, dataset.test))
    answers = evaluate.count_correct(method, flat, inputs, labels, test, lambda num_blocks: range(comm.rank, num_blocks, comm.size))
    total = answers.test.sum(keepdims=True)
    comm.allreduce(total)
    return dataset.name, int(total[0]), len(dataset.test)


def build_for_test(config: Config, device: torch.device) -> tuple[Dataset, Clip, Method]:
    """Build dataset, model and method without training: one client holds all training images."""
    images, clip = experiment.dataset(config), load(config.model, config.seed, device)
    checks.refuse_alike(images)
    one_client = holdings.Partition(images.train, np.array([0, len(images.train)]))
    return images, clip, building.build_method(config.method, config.model.precision, images, clip, one_client)


def inputs_for_test(dataset: Dataset, method: Method, work: embed.Work) -> tuple[Dataset, Inputs, embed.Embedded]:
    """The inputs of `method`, and the dataset of their rows: all images if their features are stored, else the test images."""
    stored = embed.find(dataset.images, work) if method.sees == "features" else None
    if stored is not None:
        damaged = {row: why for row, why in stored.damaged.items() if row in set(dataset.test.tolist())}
        return dataset, Features.near(stored.values, work.device), replace(stored, damaged=damaged)
    test_images = dataset.images.take(dataset.test)
    nothing = dataset.train[:0]
    test_set = replace(dataset, images=test_images, train=nothing, test=np.arange(len(dataset.test)), validation=nothing)
    features = experiment.embed_for(test_set, method, work)
    return test_set, experiment.inputs_of(test_set, method, work, features), features
