"""Choose the largest group: how many clients train in one batch of tensors, as many as fit in memory and gain speed.

On CPUs a client's bits do not depend on its group, so each rank cuts its clients into groups as it likes. GPU libraries choose
kernels by shape, so on GPUs the size of a group decides bits: it must not depend on the number of ranks, and groups must be small
enough that several ranks find work.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from flora_hpc.clip.load import Clip
from flora_hpc.comm.devices import Room
from flora_hpc.config import ClientConfig
from flora_hpc.exact import MAX_BLOCK
from flora_hpc.methods._method import Method
from flora_hpc.optimizers import OPTIMIZERS

GROUPS_ON_GPU = 16  # of a cohort, so that several ranks find work
# Larger groups were not faster on a core (measured), most likely since their data do not fit in its cache
MAX_ACTIVATION_BYTES = 2**21  # into one layer of the towers: 1,024 positions of a ViT-B/32's captions, 4,096 of flora-tiny's
MAX_FEATURE_BYTES = 2**23  # of all batches of a step
MAX_KEPT_BYTES = 3 * 2**26  # for the backward pass of a step: 17 clients of a ViT-B/32, as fast as 29
MAX_NUMBERS = 2**22  # trained numbers
MAX_CLIENTS = 256
ON_GPU = 16  # factor of the limits on a GPU, to fill it; not measured
# Numbers that a block keeps for the backward pass per position and channel (measured: 8 to 11 if frozen, 21 to 25 if trained)
KEPT_FROZEN, KEPT_TRAINED = 12, 24
KEPT_OF_FEATURE, KEPT_OF_SCORE = 4, 8  # numbers per image and channel, per image and class
EXACT_SUM_BYTES = 32  # per number that is turned into fixed point


@dataclass(frozen=True)
class Load:
    """Memory that one client of a group needs, in bytes, and its trained numbers."""

    num_params: int
    state_bytes: int  # of its optimizer's state
    kept_bytes: int  # that a step keeps for the backward pass
    activation_bytes: int  # of the input of one layer of the towers
    feature_bytes: int  # of its batch of features; 0 where the method sees pixels

    def of_group(self, num_clients: int) -> int:
        """About how many bytes a group of `num_clients` needs at its peak.

        These are its weights and optimizer states, plus the larger of two: in a step, gradients, and the kept activations or later
        the parts of gradients; after the last step, fixed-point numbers.
        """
        weights = 4 * self.num_params
        step = num_clients * (weights + max(weights, self.kept_bytes))
        exact = EXACT_SUM_BYTES * min(num_clients * self.num_params, MAX_BLOCK)
        return num_clients * (weights + self.state_bytes) + max(step, exact)


class GroupSize(NamedTuple):
    """Largest number of clients of a group, and the limit that decides it."""

    clients: int
    bound: str


def load(clip: Clip, method: Method, client: ClientConfig, num_classes: int, encodes: bool = True) -> Load:
    """Compute the memory that one client of `method` needs; `num_classes` captions are scored against each image.

    `encodes` is False for a client whose only step is by a Jacobian: it never encodes captions itself.
    """
    model, batch = clip.model, client.batch_size
    trained = method.shapes.keys() & {name for name, _ in model.named_parameters()}
    text_rows = (method.costs.text_positions + batch * method.costs.caption_positions) * encodes
    image_rows = batch * method.costs.image_positions
    text, image = tower(getattr(model, "text", model)), tower(model.visual)
    kept_of_text = KEPT_TRAINED if any(not name.startswith("visual.") for name in trained) else KEPT_FROZEN
    kept_of_image = KEPT_TRAINED if any(name.startswith("visual.") for name in trained) else KEPT_FROZEN
    width = getattr(model.visual, "output_dim", 512)
    scored = batch if method.paired else num_classes
    kept_numbers = text_rows * text.width * text.blocks * kept_of_text + image_rows * image.width * image.blocks * kept_of_image
    kept_numbers += batch * (KEPT_OF_FEATURE * width + KEPT_OF_SCORE * scored)
    state = OPTIMIZERS[client.optimizer].init(torch.empty(1, method.num_params, device="meta"), client)
    return Load(
        num_params=method.num_params,
        state_bytes=sum(part.nbytes for part in state),
        kept_bytes=4 * kept_numbers,
        activation_bytes=4 * (text_rows * text.width + image_rows * image.width),
        feature_bytes=4 * batch * width if method.sees == "features" else 0,
    )


def choose(num_clients: int, load: Load, room: Room) -> GroupSize:
    """Choose the largest group for a cohort of `num_clients`; at least 1 client, even where it does not fit in memory."""
    limits = [
        (MAX_CLIENTS, 1),
        (MAX_ACTIVATION_BYTES, load.activation_bytes),
        (MAX_FEATURE_BYTES, load.feature_bytes),
        (MAX_KEPT_BYTES, load.kept_bytes),
        (MAX_NUMBERS, load.num_params),
    ]
    times = ON_GPU if room.gpu else 1
    bounds = {
        "memory holds no more": room.num_bytes // max(1, load.of_group(1)),
        "more would not be faster": min(times * limit // max(1, of_client) for limit, of_client in limits),
        "a round has no more clients": num_clients,
    }
    if room.gpu:
        bounds["a cohort is cut into about sixteen"] = num_clients // GROUPS_ON_GPU
    bound = min(bounds, key=lambda name: bounds[name])
    return GroupSize(max(1, bounds[bound]), bound)


class Tower(NamedTuple):
    """Size of a tower."""

    width: int
    blocks: int


def tower(model: Any) -> Tower:
    """The size of a tower `model`; a ViT-B's size where the tower does not show it."""
    blocks = getattr(getattr(model, "transformer", None), "resblocks", ())
    return Tower(model.transformer.width, len(blocks)) if len(blocks) else Tower(768, 12)
