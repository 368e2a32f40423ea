import pytest

from flora_hpc.comm.backends._torchdist import first_node
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
