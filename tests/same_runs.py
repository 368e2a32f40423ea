"""Whether two runs came out the same."""

from pathlib import Path

import numpy as np

from flora_hpc.records import hdf5file

ROUNDS = (
    "round",
    "num_clients",
    "num_rejected",
    "num_examples",
    "train_loss",
    "test_accuracy",
    "uplink_bytes",
    "worst_client",
    "cross_term",
    "backdoor_success",
    "rank_accuracy_mean",
    "worst_rank",
)
CLIENTS = ("round", "client", "num_steps", "train_loss", "update_norm", "weight", "adapter_rank", "rank_accuracy")


def adapter(out: Path) -> bytes:
    """The file that a run leaves."""
    (file,) = (out / "adapter").glob("*.safetensors")
    return file.read_bytes()


def assert_same(out: Path, other: Path) -> None:
    """Both finished, with the same adapter and the same measured columns, to the last bit."""
    assert adapter(out) == adapter(other)
    (attributes, mine), (_, theirs) = hdf5file.read(out), hdf5file.read(other)
    assert attributes["status"] == "finished"
    for table, columns in (("rounds", ROUNDS), ("clients", CLIENTS)):
        for name in columns:
            np.testing.assert_array_equal(mine[table][name], theirs[table][name], err_msg=name)
