"""The classes of the cluster benchmark: fixed work, so that results of different sites can be compared.

A published class never changes: a change is a new VERSION, and results of two versions are not compared. They are listed in
docs/benchmark.md.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from flora_hpc import configfile
from flora_hpc.config import CommConfig, Config
from flora_hpc.errors import UserError, did_you_mean

VERSION = 1
REGISTERED = 10  # registered clients for each participant of a round
BATCH = 32  # examples of a step
WARM = 1  # rounds of training before the first that counts
MOST_ROWS = 1_000  # rows of /clients that run.h5 keeps of a round
PROBE_SHARE, PROBE_MOST = 64, 16  # each rank alone plays a 64th of the clients, at most 16


@dataclass(frozen=True)
class Class:
    """One class. A unit is a node; on one node it is a rank."""

    name: str
    model: str
    method: str
    clients: int  # of a round, strong scaling
    weak_clients: int  # of a round and unit, weak scaling
    steps: int  # of a client in a round
    smallest: int  # units of the smallest part of a large world; smaller ones would take too long
    accuracy: tuple[float, float]  # after the first round that counts, lowest and highest
    purpose: str

    @property
    def digest(self) -> str:
        """A digest of the work: results whose digests differ are not compared."""
        work = json.dumps([VERSION, asdict(self) | {"purpose": ""}, source(self, self.clients)], sort_keys=True)
        return hashlib.blake2b(work.encode(), digest_size=8).hexdigest()


CHANCE = (0.0, 0.6)  # random weights know no digit: only an adapter that fell apart on a real model would be told by this
CLASSES = {
    each.name: each
    for each in (
        Class("T", "flora-tiny", "flora", 1_000, 500, 1, 1, (0.5, 1.0), "a laptop, or a test of every night"),
        Class("S", "ViT-B-32", "flora", 1_000, 1_000, 4, 1, CHANCE, "one node"),
        Class("M", "ViT-B-32", "flora", 10_000, 2_000, 4, 1, CHANCE, "1 to 16 nodes"),
        Class("L", "ViT-L-14", "flora", 100_000, 2_000, 4, 16, CHANCE, "16 to 128 nodes"),
        Class("X", "ViT-L-14", "flora", 1_000_000, 2_000, 4, 128, CHANCE, "128 to 1,024 nodes"),
        Class("F", "ViT-B-32", "fedfft", 64, 16, 4, 1, CHANCE, "the fabric: 16 bytes a weight and round"),
    )
}


def find(name: str) -> Class:
    """The class of a name, in capitals or not. Raises UserError for an unknown one."""
    if (each := CLASSES.get(name.upper())) is None:
        raise UserError(f"--class {name}: there is no such class{did_you_mean(name, CLASSES)}; take one of {', '.join(CLASSES)}")
    return each


@dataclass(frozen=True)
class Work:
    """A class, a share of it, how it grows with the units, and how often a round is repeated."""

    of: Class
    weak: bool = False
    fraction: float = 1.0
    repeats: int = 5
    comm: CommConfig = field(default_factory=CommConfig)

    def clients(self, num_units: int) -> int:
        """Clients of a round on `num_units` units: at least one."""
        whole = self.of.weak_clients * num_units if self.weak else self.of.clients
        return max(1, round(whole * self.fraction))

    @property
    def probe_clients(self) -> int:
        """Clients of the round that each rank plays alone."""
        return max(1, min(PROBE_MOST, self.clients(1) // PROBE_SHARE))

    def config(self, num_clients: int, rounds: int) -> Config:
        """The configuration of a run with `num_clients` a round."""
        values = source(self.of, num_clients) | {"rounds": rounds, "comm": self.comm.model_dump(mode="json")}
        values |= {"records": {"clients": f"sample {MOST_ROWS}"}} if num_clients > MOST_ROWS else {}
        resolved, _ = configfile.load_values(values, {})
        return resolved

    @property
    def rounds(self) -> int:
        """Rounds of training: the warm-up and the repeats."""
        return WARM + self.repeats


def source(of: Class, num_clients: int) -> dict[str, Any]:
    """The values of a configuration that make up the work of a class, with `num_clients` a round."""
    low_rank = {"rank": 2, "alpha": 32.0, "targets": ["text.out_proj"], "dropout": 0.0, "init": "normal"}
    return {
        "seed": 0,
        "model": {"name": of.model, "precision": "fp32"} | ({} if of.model == "flora-tiny" else {"pretrained": "none"}),
        "method": {"name": of.method} | (low_rank if of.method == "flora" else {}),
        "data": {"name": "digits", "split": "official", "test_fraction": 0.2},
        "features": {"store": "auto", "precision": "fp32", "compute": "fp32"},
        "partition": {
            "name": "iid",
            "num_clients": REGISTERED * num_clients,
            "examples_per_client": BATCH * of.steps,
        },
        "cohort": {"size": num_clients, "assignment": "balanced"},
        "client": {
            "epochs": 1,
            "batch_size": BATCH,
            "optimizer": "adam",
            "lr": 5.0e-4 if of.method == "flora" else 1.0e-5,
            "loss": "classification",
            "weight_decay": 0.0,
            "betas": [0.9, 0.98],
            "eps": 1.0e-6,
        },
        "algorithm": {"name": "fedavg"},
        "evaluate": {"every": 1},
        "checkpoint": {"every": 0},
    }
