"""Writes run.h5 as earlier versions did."""

from pathlib import Path

import h5py
import numpy as np

from flora_hpc.records.known import RoundRecord
from flora_hpc.records.schema import TABLES
from tests.contracts.known_helpers import CONFIG, run_info

SINCE_9 = {"backdoor_success", "rank_accuracy_mean", "rank_accuracy_min", "worst_rank"}
OF_CLIENTS_SINCE_9 = {"adapter_rank", "rank_accuracy"}
SINCE_8 = {"num_attackers", "cross_term"}
OF_CLIENTS_SINCE_8 = {"attacks"}
SINCE_2 = {"client_accuracy_mean", "client_accuracy_std", "client_accuracy_min", "worst_client"}
SINCE_3 = {"batch_seconds", "sum_seconds"}
SINCE_7 = {
    "validation_accuracy", "personal_accuracy_mean", "personal_accuracy_std", "personal_accuracy_min", "personal_worst_client",
    *(f"personal_decile_{number}" for number in range(1, 10)), "personal_global_mean", "message_norm", "message_bytes",
}  # fmt: skip
OF_CLIENTS_SINCE_7 = {"memory_norm", "global_accuracy", "personal_accuracy"}


def write_old(path: Path, schema: int, records: list[RoundRecord]) -> None:
    """A finished run of that schema, with the columns and the attributes that it had."""
    lacking = (
        SINCE_9
        | OF_CLIENTS_SINCE_9
        | (SINCE_8 | OF_CLIENTS_SINCE_8 if schema < 8 else set())
        | (SINCE_7 | OF_CLIENTS_SINCE_7 if schema < 7 else set())
        | (SINCE_3 if schema < 3 else set())
        | (SINCE_2 if schema == 1 else set())
    )
    parts = {"rounds": "row", "ranks": "ranks", "clients": "clients"}
    with h5py.File(path, "w", libver="latest") as file:  # until schema 4; HDF5 1.10 cannot read these
        file.attrs.update(
            schema=schema, status="finished", seed=7, config=CONFIG, versions="{}", launcher="mpich", backend="mpi", world_size=2,
            num_clients=40, num_params=25, payload_bytes=100, group_size=2, setup_seconds=1.5,
        )  # fmt: skip
        if schema > 1:
            file.attrs.update(
                dataset="digits", features="memory", features_made_by="{}", num_features_computed=0, num_damaged=0, how="plainly",
                num_groups=2, resumed_after="[]",
            )  # fmt: skip
        for name, part in parts.items():
            rows = np.concatenate([getattr(record, part) for record in records])
            kept = [column for column in TABLES[name].names or () if column not in lacking]
            file.create_dataset(name, data=rows[kept].astype([(column, rows.dtype[column]) for column in kept]), maxshape=(None,))
        file.create_dataset("topology", data=run_info().topology)
