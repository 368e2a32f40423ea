"""Ramble: the cluster benchmark of flora_hpc, for a repository of applications: ramble repo add benchmarks/ramble."""

from ramble.appkit import *  # noqa: F403 -- as all of Ramble's applications do

FIGURES = {
    "client_updates_per_second": "1/s",
    "round_seconds": "s",
    "efficiency": "1",
    "train_seconds": "s",
    "wait_seconds": "s",
    "comm_seconds": "s",
}


class FloraHpc(ExecutableApplication):  # noqa: F405
    """Federated LoRA fine-tuning of CLIP: client updates per second, with a proof by digests."""

    name = "flora-hpc"
    tags("federated-learning", "machine-learning", "mpi")  # noqa: F405

    executable(  # noqa: F405
        "cluster",
        "flora-hpc bench cluster --class {bench_class} --{scaling} --fraction {fraction} --out {experiment_run_dir}/result --fom",
        use_mpi=True,
    )
    workload("cluster", executables=["cluster"])  # noqa: F405
    workload_variable(  # noqa: F405
        "bench_class", default="T", values=["T", "S", "M", "L", "X", "F"], description="How much work", workloads=["cluster"]
    )
    workload_variable(  # noqa: F405
        "scaling", default="strong", values=["strong", "weak"], description="Same or growing work", workloads=["cluster"]
    )
    workload_variable("fraction", default="1.0", description="Share of the class", workloads=["cluster"])  # noqa: F405

    log = "{experiment_run_dir}/{experiment_name}.out"
    for figure, unit in FIGURES.items():
        figure_of_merit(  # noqa: F405
            figure, fom_regex=rf"FOM {figure} = (?P<value>\S+)", group_name="value", units=unit, log_file=log
        )
    success_criteria(  # noqa: F405
        "valid", mode="string", match=r"FOM valid = VALID", file=log
    )
