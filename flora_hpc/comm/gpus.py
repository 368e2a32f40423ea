"""Choose the GPU of a rank: pure functions of numbers and variables, so that tests and messages need no GPU."""

from collections.abc import Mapping

from flora_hpc.comm.launch import Launch


def index(num_visible: int, local_rank: int, local_size: int) -> int | None:
    """The index of this rank's GPU, among the GPUs that the rank sees; None when it sees none.

    As many GPUs as ranks of the node (--gpus-per-node): each rank has its own GPU. Fewer GPUs: ranks share them in turn. A rank
    that sees one GPU (--gpus-per-task=1) takes that GPU, whatever its local rank.
    """
    if not 0 <= local_rank < local_size:
        raise ValueError(f"local rank {local_rank} of {local_size}")
    return local_rank % num_visible if num_visible else None


def one_each(num_visible: int, launch: Launch, environ: Mapping[str, str]) -> bool:
    """Whether every rank of this node has a GPU of its own, which NCCL needs."""
    per_task = launch.launcher == "slurm" and ("SLURM_GPUS_PER_TASK" in environ or "gpu" in environ.get("SLURM_TRES_PER_TASK", ""))
    return num_visible >= (1 if per_task else launch.local_size)


def named(environ: Mapping[str, str]) -> list[str] | None:
    """The GPUs that CUDA_VISIBLE_DEVICES names; None when it is not set. Like CUDA, this ends at the first invalid name."""
    if "CUDA_VISIBLE_DEVICES" not in environ:
        return None
    names = []
    for name in environ["CUDA_VISIBLE_DEVICES"].split(","):
        if name.strip() in ("", "-1", "NoDevFiles"):
            break
        names.append(name.strip())
    return names


def unseen(launch: Launch, environ: Mapping[str, str]) -> str:
    """A message for a rank whose launcher gave it a GPU that PyTorch does not see; empty when the launcher gave no GPU."""
    number = index(len(named(environ) or []), launch.local_rank, launch.local_size)
    if number is None:
        return ""
    return f"cuda:{number} by CUDA_VISIBLE_DEVICES={environ['CUDA_VISIBLE_DEVICES']}, but PyTorch sees no GPU"
