"""The interface of a method: trained tensors, their initial values, and a forward pass for many clients at once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal, NamedTuple, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F

from flora_hpc.clip.captions import OwnCaptions
from flora_hpc.clip.load import Clip
from flora_hpc.clip.steady import product
from flora_hpc.clip.text import TextTower
from flora_hpc.clip.towers import PlainText, text_tower
from flora_hpc.data.holdings import Holdings
from flora_hpc.data.images import Ints
from flora_hpc.errors import UserError

Tensors = Mapping[str, torch.Tensor]
Noise = Sequence[int] | None  # one seed per client for the random numbers of this step; None when evaluating
CaptionRows = torch.Tensor | None  # numbers of captions (num_clients or 1, batch) int64; None: all captions
Text = TextTower | PlainText | OwnCaptions
UNUSED = ("logit_bias", "text_decoder.")  # parameters that no score depends on, so that training would only decay them
Init = Callable[[np.random.Generator], dict[str, torch.Tensor]]


def no_column(name: str, key: str) -> Sequence[str]:
    """What a method reads of clients where nothing is known of them."""
    raise UserError(f"{key}: there is no column '{name}' of clients; leave it out")


class Classes(Protocol):
    """Compute the features of all classes, (num_clients or 1, num_classes, embed_dim), from tensors (num_clients, *shape)."""

    def __call__(self, tensors: Tensors, noise: Noise) -> torch.Tensor: ...


class CaptionClasses(Protocol):
    """`Classes` that can also compute the features of some captions only, (num_clients or 1, batch, embed_dim)."""

    def __call__(self, tensors: Tensors, noise: Noise, caption_rows: CaptionRows = None) -> torch.Tensor: ...


class Logits(Protocol):
    """Score inputs (num_clients, batch, ...), each client under its own tensors: (num_clients, batch, num_classes)."""

    def __call__(self, tensors: Tensors, classes: torch.Tensor, inputs: torch.Tensor, noise: Noise) -> torch.Tensor: ...


@dataclass(frozen=True)
class Setting:
    """The model and data that a method is built for."""

    clip: Clip
    wordings: tuple[str, ...]  # the names of the classes as captions say them
    captions: tuple[str, ...]  # one per class
    holdings: Holdings
    labels: Ints  # (num_images,) int64, of all images of the dataset
    paired: bool = False  # whether every image has a caption of its own instead of a class
    column: Callable[[str, str], Sequence[str]] = no_column  # name, option -> a text for each client, (num_clients,)

    @cached_property
    def tokens(self) -> torch.Tensor:
        """The tokens of the captions, (num_captions, context_length) int64."""
        return self.clip.tokenize(list(self.captions))

    @cached_property
    def text(self) -> Text:
        """The text tower on the captions."""
        model, tokens = self.clip.model, self.tokens
        return OwnCaptions(model, tokens) if self.paired else text_tower(model, tokens)

    def needs_classes(self, method: str) -> None:
        """Raise UserError when `method` learns something of each class, but the data have no classes."""
        if self.paired:
            raise UserError(
                f"method.name: {method} learns something of each class, but in these data every image has a caption of its own; "
                "take flora, or data with classes"
            )


class Costs(NamedTuple):
    """Positions that each client computes in the trained towers. The size of groups and the first step are chosen by them."""

    text_positions: int = 0  # in a step, for all captions
    positions_alone: int = 0  # the same if each caption were encoded by itself; 0 where that is impossible
    text_shape: tuple[int, int] = (0, 0)  # of the features of all captions, where they are trained
    caption_positions: int = 0  # for an image's own caption
    image_positions: int = 0  # for an image


FROZEN = Costs()  # where both towers are frozen


class Merge(Protocol):
    """Set the frozen weight of each layer to W0 + scale * matrix (out, in); `matrices` by the names of the layers' A."""

    def __call__(self, matrices: Tensors) -> None: ...


class Layer(NamedTuple):
    """A low-rank adapter of one layer: y = W x + scale * B (A x)."""

    path: str  # of the layer in the unfused model; two adapters of a layer have the same path
    a: str  # name of the tensor A, (rank, in)
    b: str  # name of the tensor B, (out, rank)
    scale: float
    shape: tuple[int, int]  # (out, in) of B A
    rank: int


class FirstGradient(NamedTuple):
    """How the initial adapter follows from a mean gradient of whole weights, which clients compute before round 0.

    `probe` trains a change of the weight of each layer, as a tensor `<layer>.change` (out, in). A few clients of round 1,
    `num_clients` at most, compute its gradient where it is zero. `tensors(layer, step)` makes the layer's initial tensors from the
    first step (out, in) float64 of the clients' optimizer along the mean gradient.
    """

    probe: "Method"
    num_clients: int
    tensors: Callable[[str, torch.Tensor], Tensors]


class Portions(NamedTuple):
    """The trained numbers of each client, where some clients hold only a part of them."""

    mask: Callable[[Ints], torch.Tensor]  # clients (n,) -> (n, num_params) bool
    sizes: Callable[[Ints], Ints]  # clients (n,) -> (n,) int64
    ranks: Callable[[Ints], Ints] | None = None  # clients (n,) -> (n,) int64 of their adapters, where these alone differ
    by_column: bool = False  # whether a column of the data or of the clients says the ranks
    of_ranks: Callable[[Ints], torch.Tensor] | None = None  # ranks (n,) -> (n, num_params) bool, what clients of these ranks hold


@dataclass(frozen=True)
class Method:
    """One way to adapt a CLIP. Clients train `num_trained` numbers each; everything else is frozen and shared.

    An adapter has `num_params` numbers. They are those that clients train, and `constants`: tensors that stay as they began, and
    that every client receives once.

    A forward pass has two parts: `classes` is the same for all images of a step or of an evaluation, `logits` scores a batch of
    inputs against the result of `classes`, usually text features (num_clients or 1, num_classes, embed_dim).

    Where every image has a caption of its own, `caption_features` computes the captions of a batch only. Where the text tower is
    trained, a Jacobian also asks for a single caption, `caption_rows` (1, 1) int64.
    """

    shapes: Mapping[str, tuple[int, ...]]
    init: Init
    classes: Classes  # a `CaptionClasses` unless the method learns something of each class
    logits: Logits
    how: str  # one sentence on how images and captions are computed, for `plan` and the log
    sees: Literal["features", "pixels"] = "features"  # inputs: the frozen image tower's features (embed_dim), or its pixels
    costs: Costs = FROZEN
    alpha: float | None = None  # scale of low-rank updates; None where the trained tensors are of another kind
    per_class: bool = False  # whether trained tensors belong to the classes, so that other classes cannot use them
    paired: bool = False  # whether every image has a caption of its own, so that scores are for the captions of a batch
    noisy: bool = False  # whether training draws random numbers
    prompts: tuple[str, ...] = ()  # texts of the classes, where they are not the captions of the data
    warnings: tuple[str, ...] = ()  # sentences that a user must read before round 0
    portions: Portions | None = None  # of the clients; None where each of them trains all numbers
    merge: Merge | None = None  # None where the method cannot change the frozen weights of its layers
    layers: tuple[Layer, ...] = ()  # with low-rank adapters, so that an algorithm can average B A instead of A and B
    constants: frozenset[str] = frozenset()  # names of tensors that no client trains
    first_gradient: FirstGradient | None = None  # what the initial adapter is made of; None where `init` makes it

    def caption_features(self, tensors: Tensors, noise: Noise, caption_rows: torch.Tensor) -> torch.Tensor:
        """Features of the captions `caption_rows` (num_clients or 1, batch) int64: (num_clients or 1, batch, embed_dim)."""
        return cast(CaptionClasses, self.classes)(tensors, noise, caption_rows)

    @property
    def num_params(self) -> int:
        """Numbers of an adapter; of the largest client, where they differ."""
        return sum(map(prod, self.shapes.values()))

    @property
    def num_trained(self) -> int:
        """Of these, the numbers that a client trains."""
        return sum(prod(shape) for name, shape in self.shapes.items() if name not in self.constants)

    @property
    def per_example(self) -> bool:
        """Whether each client computes a tower for each image of a step, or for its caption."""
        return self.costs.image_positions + self.costs.caption_positions > 0

    @property
    def payload_bytes(self) -> int:
        """Bytes of an update as float32, without any header; of the largest client, where they differ."""
        return 4 * self.num_trained

    def bytes_of(self, clients: Ints) -> Ints:
        """Bytes that each of `clients` (num_clients,) int64 sends, and receives: (num_clients,) int64."""
        if self.portions is None:
            return np.full(len(clients), self.payload_bytes, np.int64)
        return 4 * self.portions.sizes(clients)

    def unpack(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """(..., num_params) -> {name: (..., *shape)}, in the order of `shapes`; one split, so autograd joins gradients once."""
        if not self.shapes:
            return {}
        parts = torch.split(flat, [prod(shape) for shape in self.shapes.values()], dim=-1)
        return {
            name: part.reshape((*flat.shape[:-1], *shape)) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def pack(self, tensors: Tensors) -> torch.Tensor:
        """The inverse of `unpack` for one client: {name: shape} -> (num_params,) float32."""
        return torch.cat([torch.empty(0), *(tensors[name].reshape(-1).cpu() for name in self.shapes)]).float()


def fixed(features: torch.Tensor) -> CaptionClasses:
    """`classes` of a method with a frozen text tower, from its `features` (1, num_captions, embed_dim)."""

    def classes(tensors: Tensors, noise: Noise, caption_rows: CaptionRows = None) -> torch.Tensor:
        return features if caption_rows is None else features[0][caption_rows]

    return classes


def costs_of(text: Text | None, image_positions: int = 0) -> Costs:
    """The costs of a client that trains the text tower `text`, unless None, and an image tower of `image_positions`, unless 0."""
    if text is None:
        return Costs(image_positions=image_positions)
    return Costs(text.num_positions, text.num_alone, text.shape, text.caption_positions, image_positions)


def describe(image_trained: bool, text: Text | None) -> str:
    """Describe how images and captions are computed. `text` is the text tower, if it is trained."""
    images = "every image in every step, since the image tower is trained" if image_trained else "each image once for all rounds"
    if text is None:
        return f"{images}; captions once for all rounds"
    if isinstance(text, TextTower):
        return f"{images}; captions as a tree of {text.num_positions:,} tokens"
    if isinstance(text, OwnCaptions):
        return f"{images}; the captions of a batch, of {text.caption_positions} tokens at most"
    return f"{images}; distinct captions at full length ({text.num_positions:,} tokens), since {text.reason}"


def cosine_scores(scale: torch.Tensor, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """CLIP's scores: scaled cosines of images (num_clients, batch, dim) and unit-length classes (num_clients or 1, C, dim)."""
    # one scale per image: the gradient of a trained scale is then summed in steps too small to be cut by threads
    scales = scale.expand(*images.shape[:2], 1)
    return products(scales * F.normalize(images, dim=-1), classes)


def products(images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Dot products of images (num_clients, batch, dim) and classes (num_clients or 1, C, dim): (num_clients, batch, C)."""
    return product(images, classes.transpose(1, 2))


def uniform(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> torch.Tensor:
    """PyTorch's initial values of a Linear layer, weight or bias: uniform between -1/sqrt(fan_in) and 1/sqrt(fan_in)."""
    bound = fan_in**-0.5
    return torch.from_numpy(rng.uniform(-bound, bound, shape).astype(np.float32))
