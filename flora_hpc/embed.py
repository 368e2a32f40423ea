"""Features of all images, read from the store or computed by all ranks; and the images that cannot be decoded."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from flora_hpc.clip import identity
from flora_hpc.clip.load import Clip
from flora_hpc.clip.precision import lowered
from flora_hpc.clip.towers import image_features, images_at_once
from flora_hpc.comm.communicator import AgreedError, Communicator, together
from flora_hpc.config import FeaturesConfig
from flora_hpc.data import features
from flora_hpc.data.images import Images
from flora_hpc.data.store import DTYPES, Damage, Store
from flora_hpc.errors import at_home

FORMAT = 4  # raise it when features come out differently for the same image, tower and preprocessing

DIFFERENT = "the nodes have different images; give every node the same files"

Progress = Callable[[int, int], None]  # (images done by all ranks, images in all); called on rank 0


@dataclass(frozen=True)
class Embedded:
    """Features of all images of a dataset, and where they come from."""

    values: torch.Tensor  # (num_images, embed_dim) float32 or bfloat16; NaN where an image cannot be decoded
    damaged: Damage = field(default_factory=dict)
    num_computed: int = 0  # images that the image towers of all ranks encoded
    place: str = "memory"  # or the file from which the features are mapped
    facts: Mapping[str, str] = field(default_factory=dict)  # dataset, model, versions and device that made the features
    digest: str = ""  # of the stored bytes of all images; empty if it was not needed


@dataclass(frozen=True)
class Work:
    """Everything a rank needs to compute features."""

    clip: Clip
    config: FeaturesConfig
    comm: Communicator
    device: torch.device
    num_threads: int
    looks: bool = True  # whether this rank reads the times of files; one rank a node is enough, and many are slow
    progress: Progress = lambda done, total: None
    mark: str = ""  # what is put on every image before it is encoded

    def encode(self, images: Images, numbers: Iterable[int]) -> Iterator[tuple[int, torch.Tensor, Damage]]:
        """Encode the blocks `numbers`: number, features and damage of each block, in order."""
        model = self.clip.model
        tower, image_size = partial(image_features, model), model.visual.image_size
        batch = images_at_once(model, self.device)
        with lowered(self.config.compute, model.visual):
            yield from features.encode(
                images, numbers, tower, image_size, self.clip.preprocess, self.device, self.num_threads, self.dtype, batch
            )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which features are stored."""
        return DTYPES[self.config.precision]

    def local(self, numbers: Sequence[int]) -> Sequence[int]:
        """The blocks of `numbers` that this rank handles: every `comm.size`-th block."""
        return numbers[self.comm.rank :: self.comm.size]


def open_store(work: Work) -> Store | None:
    """The store that the configuration names, or None."""
    folder = folder_of(work.config)
    return None if folder is None else Store(folder, json.dumps(made_by(work)))


def made_by(work: Work) -> dict[str, str]:
    """Versions, device and precision, which decide the last bits of a feature and are not in its key."""
    device = torch.cuda.get_device_name(work.device) if work.device.type == "cuda" else "cpu"
    return {"torch": version("torch"), "pillow": version("pillow"), "device": device, "computed in": work.config.compute}


def folder_of(config: FeaturesConfig) -> Path | None:
    """The folder of the store: `store`, $FLORA_HPC_CACHE or ~/.cache/flora_hpc."""
    if config.store == "none":
        return None
    if config.store != "auto":
        return at_home(config.store, key="features.store")
    return at_home(os.environ.get("FLORA_HPC_CACHE") or "~/.cache/flora_hpc", "set FLORA_HPC_CACHE or features.store to a folder")


def embed(images: Images, name: str, work: Work) -> Embedded:
    """The features of all images of the dataset `name`, computed only if the store lacks them. All ranks call this.

    Raises UserError, on every rank, when the store cannot be written, or is not the same folder on all nodes.
    """
    store = open_store(work)
    if store is None:
        return _in_memory(images, work)
    digest = digest_of(images, store, work)
    key = key_of(digest, work)
    num_computed = 0
    if not any(_gather_bools(work.comm, store.find(key, len(images)) is not None)):
        facts = {"dataset": name, "model": work.clip.name, "images": str(len(images)), "precision": work.config.precision}
        facts |= made_by(work) | {"written": time.strftime("%Y-%m-%d %H:%M:%S")}
        num_computed = _compute_missing(store, key, images, facts, work)
    stored = together(work.comm, lambda: store.wait(key, len(images)))
    return Embedded(stored.values, stored.damaged, num_computed, str(store.place(key)), stored.facts, digest)


def find(images: Images, work: Work) -> Embedded | None:
    """The features of all images if the store has them and no image file must be read to know; the same answer on every rank."""
    store = open_store(work)
    if store is None:
        return None
    digest = digest_of(images, store, work) if images.stamp is None else known_digest(images, store, work)[1]
    stored = store.find(key_of(digest, work), len(images)) if digest else None
    if not all(_gather_bools(work.comm, stored is not None)) or stored is None:
        return None
    return Embedded(stored.values, stored.damaged, 0, "", stored.facts)


def key_of(digest: str, work: Work) -> str:
    """The key of features: a digest of image tower, image bytes, precision and `FORMAT`."""
    ingredients = f"{FORMAT} {identity.image_tower(work.clip)} {digest} {work.config.precision}"
    ingredients += f" computed in {work.config.compute}" if work.config.compute != "fp32" else ""
    ingredients += f" with {work.mark}" if work.mark else ""
    return hashlib.blake2b(ingredients.encode(), digest_size=16).hexdigest()


def known_digest(images: Images, store: Store, work: Work) -> tuple[str, str]:
    """The stamp of this rank's image files, and the digest that the store has for the stamps of all nodes.

    One rank a node (`work.looks`) makes a stamp, a digest of sizes and times of the files, without reading an image. Other ranks
    have the stamp "". The digest is the same on every rank:

        digests that the store has for the stamps    result          example
        -------------------------------------------  --------------  ------------------------------------------
        no stamp on any rank                         "", ""          images in memory
        one digest, for all stamps                   stamp, digest   the same files as in an earlier run
        none, or one but not for all stamps          stamp, ""       new files, or a file was touched on a node
        two or more                                  AgreedError     nodes have different images

    Raises AgreedError, on every rank, when the store has different digests for the nodes.
    """
    times = together(work.comm, images.stamp if images.stamp is not None and work.looks else lambda: "")
    stamp = hashlib.blake2b(times.encode(), digest_size=16).hexdigest() if times else ""
    answers = work.comm.allgather((store.digest(stamp) or "unknown").encode() if stamp else b"")
    digests = {answer.decode() for answer in answers if answer}
    if len(digests - {"unknown"}) > 1:
        raise AgreedError(DIFFERENT)
    return stamp, digests.pop() if digests and "unknown" not in digests else ""


def digest_of(images: Images, store: Store | None, work: Work) -> str:
    """The digest of the stored bytes of all images, the same on every rank. All ranks call this.

        known_digest gives    stamps of the nodes    who reads which images         what is stored
        --------------------  ---------------------  -----------------------------  -----------------------
        digest                any                    nobody reads any               nothing
        "" (or no store)      one, or none           all ranks share the blocks     stamp -> digest, if new
        ""                    differ                 one rank a node reads all      stamp -> digest, if new

    Stamps differ where each node has files of its own, such as copies on a local disk. Their bytes must then be equal. Raises
    AgreedError, on every rank, when they are not.
    """
    comm = work.comm
    stamp, digest = known_digest(images, store, work) if store else ("", "")
    if digest:
        return digest
    num_blocks = len(features.sizes(len(images)))
    stamps_differ = len(set(comm.allgather(stamp.encode())) - {b""}) > 1
    if stamps_differ:
        local_blocks: Sequence[int] = range(num_blocks if stamp else 0)
    else:
        local_blocks = work.local(range(num_blocks))
    gathered = comm.allgather(b"".join(together(comm, lambda: features.digests(images, local_blocks))))
    if stamps_differ:
        node_digests = {digests for digests in gathered if digests}
        if len(node_digests) > 1:
            raise AgreedError(DIFFERENT)
        blocks = node_digests.pop()
    else:  # block i is the next one of rank i % size; each digest has 16 bytes
        by_rank = [iter([digests[i : i + 16] for i in range(0, len(digests), 16)]) for digests in gathered]
        blocks = b"".join(next(by_rank[number % comm.size]) for number in range(num_blocks))
    digest = hashlib.blake2b(b"%d " % len(images) + blocks, digest_size=16).hexdigest()
    if store is not None:
        is_new = stamp and store.digest(stamp) != digest
        together(comm, lambda: store.remember(stamp, digest) if is_new else None)
    return digest


def images_digest(images: Images, work: Work) -> str:
    """`digest_of` with the store that the configuration names."""
    return digest_of(images, open_store(work), work)


def find_damage(images: Images, work: Work) -> Damage:
    """The images that cannot be decoded. Methods that read pixels need them before a run, which would fail in the middle."""
    store = open_store(work)
    digest = "" if store is None else digest_of(images, store, work)
    stored = store.damage(digest) if store else None
    if all(_gather_bools(work.comm, stored is not None)):
        return stored or {}
    local_blocks = work.local(range(len(features.sizes(len(images)))))
    preprocess = work.clip.preprocess  # an image that it cannot take must be found now, too
    local_damage = together(work.comm, lambda: features.find_damage(images, local_blocks, work.num_threads, preprocess))
    damaged = _merge_damage(work.comm, local_damage)
    if store is not None:
        together(work.comm, lambda: store.note_damage(digest, damaged) if work.comm.rank == 0 else None)
    return damaged


def _compute_missing(store: Store, key: str, images: Images, facts: dict[str, str], work: Work) -> int:
    """Compute the missing blocks on all ranks and join all blocks; returns the number of images computed."""
    sizes, comm = features.sizes(len(images)), work.comm
    stored = store.blocks(key, sizes) if comm.rank == 0 else set()
    stored = set(json.loads(comm.allgather(json.dumps(sorted(stored)).encode())[0]))  # as rank 0 sees them
    missing = [number for number in range(len(sizes)) if number not in stored]

    def compute() -> None:
        for done, (number, values, damaged) in enumerate(work.encode(images, work.local(missing)), 1):
            store.add_block(key, number, values, damaged)
            if comm.rank == 0:
                blocks = len(stored) + min(done * comm.size, len(missing))  # assumes that all ranks are equally fast
                work.progress(min(blocks * features.BLOCK, len(images)), len(images))

    together(comm, compute)
    together(comm, lambda: store.complete(key, sizes, facts) if comm.rank == 0 else None)
    return sum(sizes[number] for number in missing)


def _in_memory(images: Images, work: Work) -> Embedded:
    """Compute the features of all images without a store: each rank sends its blocks to all ranks, one at a time."""
    sizes, comm = features.sizes(len(images)), work.comm
    encoded, blocks = work.encode(images, work.local(range(len(sizes)))), []
    damaged: Damage = {}
    for turn in range(-(-len(sizes) // comm.size)):
        _, values, block_damage = next(encoded, (0, None, {}))
        damaged |= block_damage
        share = b"" if values is None else values.view(torch.uint8).numpy().tobytes()
        blocks += [torch.frombuffer(bytearray(data), dtype=work.dtype) for data in comm.allgather(share) if data]
        if comm.rank == 0:
            work.progress(min((turn + 1) * comm.size * features.BLOCK, len(images)), len(images))
    values = torch.cat([block.view(size, -1) for block, size in zip(blocks, sizes, strict=True)])
    return Embedded(values, _merge_damage(comm, damaged), len(images))


def _merge_damage(comm: Communicator, damaged: Damage) -> Damage:
    """Gather the damage of all ranks on every rank."""
    shares = [json.loads(text) for text in comm.allgather(json.dumps(damaged).encode())]
    return {int(row): why for share in shares for row, why in share.items()}


def _gather_bools(comm: Communicator, answer: bool) -> list[bool]:
    """The answers of all ranks, on every rank."""
    return [data == b"1" for data in comm.allgather(b"1" if answer else b"0")]
