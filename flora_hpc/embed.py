"""Every image's feature, from the store or computed by all ranks together; and which images cannot be decoded."""

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

Progress = Callable[[int, int], None]  # images done so far by all ranks, and of how many; called on rank 0


@dataclass(frozen=True)
class Embedded:
    """Features of all images of a dataset, and how they were come by."""

    values: torch.Tensor  # (num_images, embed_dim) float32 or bfloat16; NaN where an image cannot be decoded
    damaged: Damage = field(default_factory=dict)
    num_computed: int = 0  # images that the image tower was given, by all ranks together
    place: str = "memory"  # or the file they are mapped from
    facts: Mapping[str, str] = field(default_factory=dict)  # who made them, with what
    digest: str = ""  # of the stored bytes of all images; empty when nobody needed it


@dataclass(frozen=True)
class Work:
    """What a rank needs to make features."""

    clip: Clip
    config: FeaturesConfig
    comm: Communicator
    device: torch.device
    num_threads: int
    looks: bool = True  # whether this rank looks at the times of files; one on each node is enough, and many are slow
    progress: Progress = lambda done, total: None

    def encode(self, images: Images, numbers: Iterable[int]) -> Iterator[tuple[int, torch.Tensor, Damage]]:
        """These blocks' features and damage, one block after the other."""
        model = self.clip.model
        tower, size = partial(image_features, model), model.visual.image_size
        at_once = images_at_once(model, self.device)
        with lowered(self.config.compute, model.visual):
            yield from features.encode(
                images, numbers, tower, size, self.clip.preprocess, self.device, self.num_threads, self.dtype, at_once
            )

    @property
    def dtype(self) -> torch.dtype:
        """What features are kept as."""
        return DTYPES[self.config.precision]

    def mine(self, numbers: Sequence[int]) -> Sequence[int]:
        """Those of some blocks that fall to this rank."""
        return numbers[self.comm.rank :: self.comm.size]


def open_store(work: Work) -> Store | None:
    """The store that the configuration names; None for none."""
    folder = folder_of(work.config)
    return None if folder is None else Store(folder, json.dumps(made_by(work)))


def made_by(work: Work) -> dict[str, str]:
    """What decides the last bits of a feature, beside what its key tells."""
    device = torch.cuda.get_device_name(work.device) if work.device.type == "cuda" else "cpu"
    return {"torch": version("torch"), "pillow": version("pillow"), "device": device, "computed in": work.config.compute}


def folder_of(config: FeaturesConfig) -> Path | None:
    """Where features are kept: `store`, or $FLORA_HPC_CACHE, or ~/.cache/flora_hpc."""
    if config.store == "none":
        return None
    if config.store != "auto":
        return at_home(config.store, key="features.store")
    return at_home(os.environ.get("FLORA_HPC_CACHE") or "~/.cache/flora_hpc", "set FLORA_HPC_CACHE or features.store to a folder")


def embed(images: Images, name: str, work: Work) -> Embedded:
    """The features of all images. All ranks call this; those of a dataset called `name` are computed only where none are kept.

    Raises UserError, on every rank, when the store cannot be written, or is not the same one on all nodes.
    """
    store = open_store(work)
    if store is None:
        return _in_memory(images, work)
    digest = digest_of(images, store, work)
    key = key_of(digest, work)
    num_computed = 0
    if not any(_everyone(work.comm, store.find(key, len(images)) is not None)):
        facts = {"dataset": name, "model": work.clip.name, "images": str(len(images)), "precision": work.config.precision}
        facts |= made_by(work) | {"written": time.strftime("%Y-%m-%d %H:%M:%S")}
        num_computed = _fill(store, key, images, facts, work)
    stored = together(work.comm, lambda: store.wait(key, len(images)))
    return Embedded(stored.values, stored.damaged, num_computed, str(store.place(key)), stored.facts, digest)


def find(images: Images, work: Work) -> Embedded | None:
    """The features of all images, if they are kept and that can be told without reading files; the same answer on every rank."""
    store = open_store(work)
    if store is None:
        return None
    digest = digest_of(images, store, work) if images.stamp is None else known_digest(images, store, work)[1]
    stored = store.find(key_of(digest, work), len(images)) if digest else None
    if not all(_everyone(work.comm, stored is not None)) or stored is None:
        return None
    return Embedded(stored.values, stored.damaged, 0, "", stored.facts)


def key_of(digest: str, work: Work) -> str:
    """The name of features: a digest of all that decides them, that of the images included."""
    decides = f"{FORMAT} {identity.image_tower(work.clip)} {digest} {work.config.precision}"
    decides += f" computed in {work.config.compute}" if work.config.compute != "fp32" else ""
    return hashlib.blake2b(decides.encode(), digest_size=16).hexdigest()


def known_digest(images: Images, store: Store, work: Work) -> tuple[str, str]:
    """The stamp of the files that this rank looks at, and the digest that all ranks know of them; empty where there is none.

    One rank of each node looks. Raises AgreedError, on every rank, when nodes are known to have different images.
    """
    facts = together(work.comm, images.stamp if images.stamp is not None and work.looks else lambda: "")
    stamp = hashlib.blake2b(facts.encode(), digest_size=16).hexdigest() if facts else ""
    told = work.comm.allgather((store.digest(stamp) or "unknown").encode() if stamp else b"")
    known = {text.decode() for text in told if text}
    if len(known - {"unknown"}) > 1:
        raise AgreedError(DIFFERENT)
    return stamp, known.pop() if known and "unknown" not in known else ""


def digest_of(images: Images, store: Store | None, work: Work) -> str:
    """A digest of the stored bytes of all images; read off the times of their files where a store knows these.

    All ranks share the reading; but where nodes have files of their own, each node reads all of its own. Raises AgreedError, on
    every rank, when these differ.
    """
    comm = work.comm
    stamp, known = known_digest(images, store, work) if store else ("", "")
    if known:
        return known
    num_blocks = len(features.sizes(len(images)))
    own = len(set(comm.allgather(stamp.encode())) - {b""}) > 1  # files with other times or places than another node's
    mine = range(num_blocks) if own and stamp else range(0) if own else work.mine(range(num_blocks))
    told = comm.allgather(b"".join(together(comm, lambda: features.digests(images, mine))))
    if own:
        whole = {share for share in told if share}
        if len(whole) > 1:
            raise AgreedError(DIFFERENT)
        blocks = whole.pop()
    else:
        shares = [iter([share[i : i + 16] for i in range(0, len(share), 16)]) for share in told]
        blocks = b"".join(next(shares[number % comm.size]) for number in range(num_blocks))
    digest = hashlib.blake2b(b"%d " % len(images) + blocks, digest_size=16).hexdigest()
    if store is not None:
        is_new = stamp and store.digest(stamp) != digest
        together(comm, lambda: store.remember(stamp, digest) if is_new else None)
    return digest


def images_digest(images: Images, work: Work) -> str:
    """`digest_of` all images, with the store that the configuration names or none."""
    return digest_of(images, open_store(work), work)


def find_damage(images: Images, work: Work) -> Damage:
    """Images that cannot be decoded, for methods that read pixels and would meet them in the middle of a run."""
    store = open_store(work)
    digest = "" if store is None else digest_of(images, store, work)
    known = store.damage(digest) if store else None
    if all(_everyone(work.comm, known is not None)):
        return known or {}
    mine = work.mine(range(len(features.sizes(len(images)))))
    preprocess = work.clip.preprocess  # what it cannot take must come up now, too
    found = together(work.comm, lambda: features.find_damage(images, mine, work.num_threads, preprocess))
    damaged = _merge(work.comm, found)
    if store is not None:
        together(work.comm, lambda: store.note_damage(digest, damaged) if work.comm.rank == 0 else None)
    return damaged


def _fill(store: Store, key: str, images: Images, facts: dict[str, str], work: Work) -> int:
    """Compute the blocks that are missing, all ranks together, and join them: how many images were computed."""
    sizes, comm = features.sizes(len(images)), work.comm
    there = store.blocks(key, sizes) if comm.rank == 0 else set()
    there = set(json.loads(comm.allgather(json.dumps(sorted(there)).encode())[0]))  # rank 0's
    missing = [number for number in range(len(sizes)) if number not in there]

    def compute() -> None:
        for done, (number, values, damaged) in enumerate(work.encode(images, work.mine(missing)), 1):
            store.add_block(key, number, values, damaged)
            if comm.rank == 0:
                blocks = len(there) + min(done * comm.size, len(missing))  # as if all ranks were as fast
                work.progress(min(blocks * features.BLOCK, len(images)), len(images))

    together(comm, compute)
    together(comm, lambda: store.complete(key, sizes, facts) if comm.rank == 0 else None)
    return sum(sizes[number] for number in missing)


def _in_memory(images: Images, work: Work) -> Embedded:
    """The features of all images, each rank's share sent to all of them block by block."""
    sizes, comm = features.sizes(len(images)), work.comm
    mine, kept = work.encode(images, work.mine(range(len(sizes)))), []
    damaged: Damage = {}
    for turn in range(-(-len(sizes) // comm.size)):
        _, values, of_block = next(mine, (0, None, {}))
        damaged |= of_block
        share = b"" if values is None else values.view(torch.uint8).numpy().tobytes()
        kept += [torch.frombuffer(bytearray(data), dtype=work.dtype) for data in comm.allgather(share) if data]
        if comm.rank == 0:
            work.progress(min((turn + 1) * comm.size * features.BLOCK, len(images)), len(images))
    values = torch.cat([block.view(size, -1) for block, size in zip(kept, sizes, strict=True)])
    return Embedded(values, _merge(comm, damaged), len(images))


def _merge(comm: Communicator, damaged: Damage) -> Damage:
    """All ranks' damage together, on every rank."""
    shares = [json.loads(text) for text in comm.allgather(json.dumps(damaged).encode())]
    return {int(row): why for share in shares for row, why in share.items()}


def _everyone(comm: Communicator, answer: bool) -> list[bool]:
    """Each rank's answer."""
    return [data == b"1" for data in comm.allgather(b"1" if answer else b"0")]
