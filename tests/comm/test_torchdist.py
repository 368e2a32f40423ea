import pytest

from flora_hpc.comm.backends._torchdist import first_node, place
from flora_hpc.comm.launch import Launch
from flora_hpc.errors import UserError


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node7", "node7"),
        ("node7,login", "node7"),
        ("node[3-5,8]", "node3"),
        ("node[003-105],gpu[1-2]", "node003"),
        ("rack[2,4]-node[01-16].cluster,x", "rack2-node01.cluster"),
        ("[10-11]", "10"),
    ],
)
def test_the_first_host_of_slurms_list(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


def test_an_empty_list_of_hosts_is_answered_with_the_cure() -> None:
    with pytest.raises(UserError, match="MASTER_ADDR=<host of rank 0>"):
        first_node("")


SRUN = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "2", "SLURM_STEP_NODELIST": "node[3-5]"}
LAUNCH = Launch("slurm", 1, 4, 1, 2)


def test_under_slurm_all_ranks_work_out_the_same_place() -> None:
    meeting = place(LAUNCH, SRUN)
    assert (meeting.hosts, meeting.ports[0], meeting.token) == (("node3",), 20051, "7.2.4")
    assert len(set(meeting.ports)) == len(meeting.ports) > 1
    assert all(20000 <= port < 40000 for port in meeting.ports)
    assert set(place(LAUNCH, SRUN | {"SLURM_JOB_ID": "8"}).ports).isdisjoint(meeting.ports)


@pytest.mark.parametrize(
    ("given", "hosts", "ports"),
    [
        ({"MASTER_ADDR": "10.0.0.9"}, ("10.0.0.9",), place(LAUNCH, SRUN).ports),
        ({"MASTER_PORT": "29500"}, ("node3",), (29500,)),
        ({"MASTER_PORT": "29500", "MASTER_ADDR": "a", "SLURM_STEP_ID": "4294967291x"}, ("a",), (29500,)),
    ],
)
def test_each_of_the_users_variables_counts(given: dict[str, str], hosts: tuple[str], ports: tuple[int, ...]) -> None:
    meeting = place(LAUNCH, SRUN | given)
    assert (meeting.hosts, meeting.ports) == (hosts, ports)


@pytest.mark.parametrize("broken", [{"SLURM_JOB_ID": ""}, {"SLURM_STEP_ID": "batch"}])
def test_a_step_without_a_number_is_answered_with_the_cure(broken: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"SLURM_JOB_ID is .* no numbers; .*export MASTER_ADDR="):
        place(LAUNCH, SRUN | broken)
