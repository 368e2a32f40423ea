"""Runs that nobody played, with as many rounds, clients and ranks as a measurement needs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from flora_hpc.config import RecordsConfig
from flora_hpc.errors import UserError
from flora_hpc.records import sampled
from flora_hpc.records.hdf5file import Writer
from flora_hpc.records.known import Floats, Ints, RoundRecord, RunInfo, forget_tests
from flora_hpc.records.schema import CLIENTS, RANKS, ROUNDS, TOPOLOGY, Rows
from flora_hpc.records.split import Split

NUM_CLASSES = 100
PAYLOAD_BYTES = 98_304
CONFIG = """\
seed: 0
rounds: {rounds}
model: {{name: ViT-B-32}}
method: {{name: flora, rank: 2, alpha: 32.0}}
data: {{name: made up}}
partition: {{name: dirichlet, num_clients: {clients}, beta: 0.1}}
cohort: {{fraction: 1.0, size: null}}
client: {{epochs: 1, batch_size: 128, lr: 5.0e-05, optimizer: adam, loss: contrastive}}
algorithm: {{name: fedavg}}
"""
SHARES = {"batch": 0.02, "train": 0.8, "sum": 0.02, "comm": 0.04, "server": 0.01, "eval": 0.05, "log": 0.01}  # of a round


def write(path: Path, num_rounds: int, num_clients: int, num_ranks: int, most: int | None = None) -> None:
    """Write a made-up run in which all clients train in every round, as the program writes it, with the rows of `most` clients."""
    rng = np.random.default_rng(0)
    sizes = rng.lognormal(4.5, 0.6, num_clients).astype(np.int64) + 1
    shown = np.linspace(0, num_clients - 1, min(num_clients, 1000)).astype(np.int64)
    shares = rng.dirichlet(np.full(NUM_CLASSES, 0.1), len(shown))
    counts = np.array([rng.multinomial(size, share) for size, share in zip(sizes[shown], shares, strict=True)])
    split = Split(shown, counts, tuple(f"class {i}" for i in range(NUM_CLASSES)))
    writer = Writer(path, run_info(num_rounds, num_clients, num_ranks, split, most))
    speed = rng.uniform(0.85, 1.0, num_ranks)  # all ranks wait for the slowest
    for number in range(num_rounds + 1):
        record = round_record(number, num_rounds, sizes, speed, rng)
        writer.add(record if most is None or number == 0 else replace(record, clients=kept(record.clients, number, most)))
    writer.close("finished")


def kept(clients: Rows, number: int, most: int) -> Rows:
    """The rows of the `most` clients that have one in round `number`."""
    return clients[np.sort(sampled.chosen(0, number, most, len(clients), lambda places: places))]


def most_rows(records: str) -> int | None:
    """The rows of /clients that a round keeps at most, by a value of `records.clients`; None for all. Raises UserError."""
    try:
        return RecordsConfig(clients=records).most_clients
    except ValidationError as error:
        raise UserError(f"--records: {error.errors()[0]['ctx']['error']}") from None


def run_info(num_rounds: int, num_clients: int, num_ranks: int, split: Split | None = None, most: int | None = None) -> RunInfo:
    """The facts of such a run."""
    places = [(rank, f"node{rank // 4}".encode(), rank % 4, b"cuda:0", 8) for rank in range(num_ranks)]
    return RunInfo(
        seed=0,
        config=CONFIG.format(rounds=num_rounds, clients=num_clients),
        versions={"flora_hpc": "made up"},
        launcher="slurm",
        backend="nccl",
        world_size=num_ranks,
        dataset="made up",
        features="memory",
        features_made_by="{}",
        num_features_computed=0,
        num_damaged=0,
        topology=np.array(places, TOPOLOGY),
        num_rounds=num_rounds,
        num_clients=num_clients,
        rows_per_round=num_clients if most is None else min(most, num_clients),
        num_params=PAYLOAD_BYTES // 4,
        payload_bytes=PAYLOAD_BYTES,
        how="made up",
        group_size=64,
        num_groups=-(-num_clients // 64),
        split=split,
        setup_seconds=30.0,
    )


def round_record(number: int, num_rounds: int, sizes: Ints, speed: Floats, rng: np.random.Generator) -> RoundRecord:
    """The record of a round in which clients with `sizes` (n,) examples train on ranks of relative `speed` (num_ranks,)."""
    num_clients, num_ranks, done = len(sizes) if number else 0, len(speed), number / num_rounds
    clients, ranks, row = np.zeros(num_clients, CLIENTS), np.zeros(num_ranks, RANKS), np.zeros(1, ROUNDS)
    clients["round"] = ranks["round"] = row["round"] = number
    clients["client"], clients["rank"] = np.arange(num_clients), np.arange(num_clients) % num_ranks
    clients["group"] = np.arange(num_clients) // 64
    clients["num_examples"] = clients["weight"] = sizes[:num_clients]
    clients["num_steps"] = clients["num_examples"] // 128 + 1
    clients["train_loss"] = rng.lognormal(0.5 - 2 * done, 0.2, num_clients)
    clients["update_norm"] = rng.lognormal(-1 - done, 0.3, num_clients)
    clients["train_seconds"] = 0.002 * clients["num_steps"] * rng.lognormal(0, 0.1, num_clients)
    clients["uplink_bytes"] = clients["downlink_bytes"] = PAYLOAD_BYTES
    ranks["rank"], ranks["num_clients"] = np.arange(num_ranks), num_clients // num_ranks
    jitter = rng.lognormal(0, 0.03, num_ranks)
    for name, share in SHARES.items():
        ranks[f"{name}_seconds"] = share * (speed * jitter if name == "train" else 1.0)
    busy = np.sum([ranks[f"{name}_seconds"] for name in SHARES], axis=0)
    ranks["wait_seconds"] = busy.max() - busy
    ranks["round_seconds"] = busy.max()
    ranks["collective_bytes"], ranks["peak_memory_bytes"] = 4 * PAYLOAD_BYTES, 3e9 + 1e8 * rng.random(num_ranks)
    for name in [name for name in ROUNDS.names or () if name.endswith("_seconds")]:
        row[name] = ranks[name].mean()
    row["num_clients"], row["num_examples"] = num_clients, clients["num_examples"].sum()
    row["train_loss"] = clients["train_loss"].mean() if num_clients else np.nan
    forget_tests(row)
    forget_tests(clients)
    row["test_accuracy"] = 0.6 + 0.3 * (1 - np.exp(-5 * done)) + 0.003 * rng.standard_normal()
    row["message_norm"], row["cross_term"], clients["memory_norm"] = np.nan, np.nan, np.nan
    row["uplink_bytes"] = row["downlink_bytes"] = PAYLOAD_BYTES * num_clients
    row["collective_bytes"] = ranks["collective_bytes"].sum()
    return RoundRecord(row, ranks, clients)
