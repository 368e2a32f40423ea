"""The choice of GPUs, tested without a GPU: by numbers and variables alone."""

import pytest

from flora_hpc.comm import gpus
from flora_hpc.comm.launch import Launch


@pytest.mark.parametrize(
    ("num_visible", "local_size", "taken"),
    [
        (2, 2, [0, 1]),  # --gpus-per-node=2: each its own
        (4, 2, [0, 1]),
        (1, 2, [0, 0]),  # --gpus-per-task=1: each sees its own as number 0; or both share the only one
        (2, 4, [0, 1, 0, 1]),  # more ranks than GPUs: in turn
        (0, 2, [None, None]),
    ],
)
def test_every_local_rank_takes_the_right_index(num_visible: int, local_size: int, taken: list[int | None]) -> None:
    assert [gpus.index(num_visible, rank, local_size) for rank in range(local_size)] == taken


def test_a_rank_outside_its_node_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="local rank 2 of 2"):
        gpus.index(1, 2, 2)


@pytest.mark.parametrize(
    ("num_visible", "launcher", "environ", "enough"),
    [
        (2, "torchrun", {}, True),
        (1, "torchrun", {}, False),
        (0, "torchrun", {}, False),
        (1, "slurm", {}, False),  # --gpus-per-node=1 for two ranks
        (1, "slurm", {"SLURM_GPUS_PER_TASK": "1"}, True),
        (1, "slurm", {"SLURM_TRES_PER_TASK": "cpu:4,gres/gpu:1"}, True),
        (1, "slurm", {"SLURM_TRES_PER_TASK": "cpu:4"}, False),
        (0, "slurm", {"SLURM_GPUS_PER_TASK": "1"}, False),
        (1, "mpich", {"SLURM_GPUS_PER_TASK": "1"}, False),  # its ranks all see what their parent saw
    ],
)
def test_nccl_needs_a_gpu_for_each_rank(num_visible: int, launcher: str, environ: dict[str, str], enough: bool) -> None:
    assert gpus.one_each(num_visible, Launch(launcher, 0, 2, 0, 2), environ) == enough


@pytest.mark.parametrize(
    ("text", "names"),
    [("0,1", ["0", "1"]), ("GPU-8a, 3", ["GPU-8a", "3"]), ("", []), ("-1", []), ("0,-1,1", ["0"]), ("NoDevFiles", [])],
)
def test_visible_gpus_are_read_as_cuda_reads_them(text: str, names: list[str]) -> None:
    assert gpus.named({"CUDA_VISIBLE_DEVICES": text}) == names
    assert gpus.named({}) is None


def test_a_gpu_that_pytorch_does_not_see_is_told() -> None:
    second = Launch("slurm", 1, 2, 1, 2)
    message = "cuda:1 by CUDA_VISIBLE_DEVICES=0,1, but PyTorch sees no GPU"
    assert gpus.unseen(second, {"CUDA_VISIBLE_DEVICES": "0,1"}) == message
    assert gpus.unseen(second, {"CUDA_VISIBLE_DEVICES": "1"}).startswith("cuda:0 by")
    assert gpus.unseen(second, {"CUDA_VISIBLE_DEVICES": ""}) == gpus.unseen(second, {}) == ""
