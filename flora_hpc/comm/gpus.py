"""Which GPU a rank takes: pure functions of numbers and variables, so that they can be tested, and told, without a GPU."""

from collections.abc import Mapping

from flora_hpc.comm.launch import Launch


def index(num_visible: int, local_rank: int, local_size: int) -> int | None:
    """The number, among the GPUs that this rank sees, of the one it takes; None when there is none.

    As many GPUs as ranks of the node (--gpus-per-node): each rank its own. Fewer: ranks take them in turn. A rank that sees one GPU
    (--gpus-per-task=1) takes it, whatever its local rank.
    """
    if not 0 <= local_rank < local_size:
        raise ValueError(f"local rank {local_rank} of {local_size}")
    return local_rank % num_visible if num_visible else None


def one_each(num_visible: int, launch: Launch, environ: Mapping[str, str]) -> bool:
    """Whether every rank of this node has a GPU of its own, which NCCL needs."""
    per_task = launch.launcher == "slurm" and ("SLURM_GPUS_PER_TASK" in environ or "gpu" in environ.get("SLURM_TRES_PER_TASK", ""))
    return num_visible >= (1 if per_task else launch.local_size)


def named(environ: Mapping[str, str]) -> list[str] | None:
    """The GPUs that CUDA_VISIBLE_DEVICES names; None when it is not set. As in CUDA, what follows an invalid one is not seen."""
    if "CUDA_VISIBLE_DEVICES" not in environ:
        return None
    names = []
    for name in environ["CUDA_VISIBLE_DEVICES"].split(","):
        if name.strip() in ("", "-1", "NoDevFiles"):
            break
        names.append(name.strip())
    return names


def unseen(launch: Launch, environ: Mapping[str, str]) -> str:
    """What to say on a rank whose launcher gave it a GPU that PyTorch does not see; nothing when it gave none."""
    taken = index(len(named(environ) or []), launch.local_rank, launch.local_size)
    if taken is None:
        return ""
    return f"cuda:{taken} by CUDA_VISIBLE_DEVICES={environ['CUDA_VISIBLE_DEVICES']}, but PyTorch sees no GPU"
