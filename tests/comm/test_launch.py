"""The rank from a launcher's variables; the values come from real launchers with up to eight processes."""

import pytest

from flora_hpc.comm.launch import Launch, check_world, detect, origin
from flora_hpc.errors import UserError

BATCH_SHELL = {
    "SLURM_JOB_ID": "41",
    "SLURM_JOB_NODELIST": "node[1-4]",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_TASKS_PER_NODE": "1(x4)",
}
SALLOC_SHELL = {"SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "node[1-4]", "SLURM_NTASKS": "4"}

SRUN = BATCH_SHELL | {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_NUM_NODES": "4",
    "SLURM_STEP_NODELIST": "node[1-4]",
    "SLURM_STEP_TASKS_PER_NODE": "2,1(x3)",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "0",
}
SRUN_PMIX = SRUN | {"SLURM_MPI_TYPE": "pmix", "PMIX_RANK": "1", "PMIX_NAMESPACE": "slurm.pmix.41.0"}
SRUN_PMI2 = SRUN | {"SLURM_MPI_TYPE": "pmi2", "PMI_RANK": "1", "PMI_SIZE": "5", "PMI_FD": "9"}
SRUN_NONE = SRUN | {"SLURM_MPI_TYPE": "none"}

OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_NODE_RANK": "1",
    "PMIX_RANK": "5",
    "PMIX_NAMESPACE": "prterun-node1-1@1",
}
MPICH = {
    "PMI_RANK": "2",
    "PMI_SIZE": "4",
    "PMI_FD": "6",
    "PMI_HOSTNAME": "node1",
    "HYDI_CONTROL_FD": "7",
    "MPI_LOCALRANKID": "0",
    "MPI_LOCALNRANKS": "2",
}
TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "6",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "3",
    "ROLE_RANK": "3",
    "ROLE_WORLD_SIZE": "6",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_RESTART_COUNT": "0",
    "OMP_NUM_THREADS": "1",
}


@pytest.mark.parametrize(
    ("environ", "launch"),
    [
        ({"HOME": "/root"}, Launch("none", 0, 1, 0, 1)),
        (TORCHRUN, Launch("torchrun", rank=3, size=6, local_rank=1, local_size=2)),
        (OPENMPI, Launch("openmpi", rank=5, size=8, local_rank=1, local_size=2)),
        (MPICH, Launch("mpich", rank=2, size=4, local_rank=0, local_size=2)),
        (SRUN_PMIX, Launch("slurm", rank=1, size=5, local_rank=1, local_size=2)),
        (SRUN_PMI2, Launch("slurm", rank=1, size=5, local_rank=1, local_size=2)),
        (SRUN_NONE, Launch("slurm", rank=1, size=5, local_rank=1, local_size=2)),
    ],
    ids=["none", "torchrun", "openmpi", "mpich", "srun pmix", "srun pmi2", "srun none"],
)
def test_every_launcher_is_known_by_its_variables(environ: dict[str, str], launch: Launch) -> None:
    assert detect(environ) == launch


@pytest.mark.parametrize(
    ("environ", "launcher", "rank", "size"),
    [(TORCHRUN, "torchrun", 3, 6), (OPENMPI, "openmpi", 5, 8), (MPICH, "mpich", 2, 4)],
    ids=["torchrun", "openmpi", "mpich"],
)
@pytest.mark.parametrize("job", [BATCH_SHELL, SRUN_PMIX], ids=["batch shell", "step of the launcher itself"])
def test_inside_a_slurm_job_the_launcher_nearest_to_the_process_counts(
    environ: dict[str, str], launcher: str, rank: int, size: int, job: dict[str, str]
) -> None:
    """SLURM_* are wrong there: they belong to the batch shell, or to the step of the launcher's helpers."""
    result = detect(job | environ)
    assert (result.launcher, result.rank, result.size) == (launcher, rank, size)


def test_the_variables_that_decide_are_named_with_their_values() -> None:
    assert origin(TORCHRUN | SRUN) == "RANK=3, WORLD_SIZE=6, LOCAL_RANK=1, LOCAL_WORLD_SIZE=2"
    assert origin(MPICH) == "PMI_RANK=2, PMI_SIZE=4, MPI_LOCALRANKID=0, MPI_LOCALNRANKS=2"
    assert origin(BATCH_SHELL) == "no launcher's variables"


@pytest.mark.parametrize("shell", [BATCH_SHELL, SALLOC_SHELL], ids=["sbatch", "salloc"])
def test_plain_python_in_a_slurm_shell_is_a_world_of_one(shell: dict[str, str]) -> None:
    """A batch shell carries SLURM_PROCID=0 and SLURM_NTASKS=4, although there is one process."""
    assert detect(shell) == Launch("none", 0, 1, 0, 1)


def test_the_size_is_the_steps_not_the_jobs() -> None:
    assert SRUN["SLURM_NTASKS"] == "4"
    assert detect(SRUN).size == 5


@pytest.mark.parametrize(
    ("counts", "node", "local_size"),
    [("2,1(x3)", "0", 2), ("2,1(x3)", "1", 1), ("2,1(x3)", "3", 1), ("4(x2),3", "1", 4), ("4(x2),3", "2", 3), ("8", "0", 8)],
)
def test_tasks_per_node_are_read_in_slurms_short_form(counts: str, node: str, local_size: int) -> None:
    environ = SRUN | {"SLURM_STEP_TASKS_PER_NODE": counts, "SLURM_NODEID": node, "SLURM_LOCALID": "0"}
    assert detect(environ).local_size == local_size


@pytest.mark.parametrize(
    ("environ", "missing"),
    [
        (TORCHRUN, "LOCAL_RANK"),
        (OPENMPI, "OMPI_COMM_WORLD_LOCAL_RANK"),
        (MPICH, "PMI_SIZE"),
        (SRUN, "SLURM_PROCID"),
        (SRUN, "SLURM_STEP_TASKS_PER_NODE"),
    ],
)
def test_a_missing_variable_is_named(environ: dict[str, str], missing: str) -> None:
    left = {key: value for key, value in environ.items() if key != missing}
    with pytest.raises(UserError, match=f"{missing} is 'missing'; start through .* itself, or unset"):
        detect(left)


def test_a_variable_that_is_no_number_is_shown() -> None:
    with pytest.raises(UserError, match="PMI_RANK is 'two'"):
        detect(MPICH | {"PMI_RANK": "two"})


def test_a_node_beyond_the_list_of_nodes_is_refused() -> None:
    with pytest.raises(UserError, match="SLURM_STEP_TASKS_PER_NODE"):
        detect(SRUN | {"SLURM_NODEID": "4"})


@pytest.mark.parametrize(
    ("name", "value"), [("OMPI_COMM_WORLD_RANK", "8"), ("OMPI_COMM_WORLD_LOCAL_RANK", "2")], ids=["rank", "local rank"]
)
def test_a_rank_outside_its_world_is_refused(name: str, value: str) -> None:
    with pytest.raises(UserError, match="impossible"):
        detect(OPENMPI | {name: value})


def test_a_world_of_the_launchers_size_is_right() -> None:
    check_world(Launch("slurm", 0, 8, 0, 2), "mpi", 8)
    check_world(Launch(), "serial", 1)


@pytest.mark.parametrize(
    ("launcher", "backend", "cure"),
    [
        ("slurm", "mpi", "srun --mpi=pmix for Open MPI, --mpi=pmi2 for MPICH"),
        ("openmpi", "mpi", "use the mpirun of the MPI library that mpi4py loads"),
        ("mpich", "mpi", "use the mpiexec of the MPI library that mpi4py loads"),
        ("torchrun", "mpi", "set comm.backend: gloo"),
        ("slurm", "serial", "comm.backend"),
        ("openmpi", "serial", "comm.backend"),
        ("mpich", "serial", "comm.backend"),
        ("torchrun", "serial", "comm.backend"),
    ],
)
def test_eight_worlds_of_one_are_refused_with_the_cure(launcher: str, backend: str, cure: str) -> None:
    """Otherwise eight processes would all be rank 0 and write the same files."""
    with pytest.raises(UserError) as error:
        check_world(Launch(launcher, 3, 8, 1, 2), backend, 1)
    assert str(error.value).startswith(f"{launcher} started 8 processes, but backend '{backend}' sees a world of 1: ")
    assert cure in str(error.value)


def test_a_world_that_no_known_launcher_started_is_refused_with_the_cure() -> None:
    with pytest.raises(UserError) as error:
        check_world(Launch(), "mpi", 4)
    assert str(error.value).startswith("one process was started, but backend 'mpi' sees a world of 4: ")
    assert "start it with mpiexec, torchrun or srun, or set comm.backend: serial" in str(error.value)
