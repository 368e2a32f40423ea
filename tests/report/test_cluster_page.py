import pytest

from flora_hpc.report import cluster_page, phase_bar
from tests.bench.cluster.whole import whole


def test_a_page_to_hand_over() -> None:
    page = cluster_page.make(whole())
    assert "<b>6</b>" in page, "12 clients in 2 s"
    assert "<b>VALID</b>" in page
    assert "75.0%" in page, "1.5 times as fast on two nodes"
    for name in ("curve", "efficiency", "phases", "nodes"):
        assert f'id="{name}"' in page
    assert "://" not in page.replace("http://www.w3.org", ""), "nothing is fetched"


def test_an_invalid_result_without_numbers_names_the_culprit() -> None:
    bad = whole() | {"valid": False, "culprit": "rank 1 on n1: <another> digest", "curve": [], "phases": {}, "slowest": {}}
    page = cluster_page.make(bad)
    assert "<b>INVALID</b> rank 1 on n1: &lt;another&gt; digest" in page
    assert 'id="curve"' not in page


def test_a_share_of_a_class_is_marked() -> None:
    assert "0.01 of its clients: a share, not comparable with the whole class" in cluster_page.make(whole(fraction=0.01))


def test_links_are_shown_where_they_were_measured() -> None:
    row = {
        "what": "allreduce",
        "scope": "all ranks",
        "ranks": 4,
        "bytes": 8,
        "min_seconds": 1e-5,
        "median_seconds": 2e-5,
        "max_seconds": 3e-5,
    }
    assert "<h2>Links</h2>" not in cluster_page.make(whole())
    rates = {"names": ["n0", "n1"], "bytes_per_second": [[None, 1e9], [1e9, None]], "slowest": ["n0", "n1"]}
    page = cluster_page.make(whole() | {"links": [row], "pairs": rates | {"slowest_over_median": 1.0}})
    assert 'id="pairs"' in page
    assert "<h2>Links</h2>" in page
    assert "30.0 µs" in page or "30 µs" in page


def test_warnings_stand_under_the_verdict() -> None:
    assert "beware" not in cluster_page.make(whole())
    page = cluster_page.make(whole() | {"warnings": ["a <busy> machine"]})
    verdict = page.index("<b>VALID</b>")
    assert verdict < page.index('<p class="warning"><b>beware</b> a &lt;busy&gt; machine</p>') < page.index('class="facts"')


@pytest.mark.parametrize(
    ("launcher", "ranks", "said"),
    [
        ("none", 1, "flora-hpc bench cluster; 1 rank on 1 node, started alone"),
        ("mpich", 2, "flora-hpc bench cluster; 2 ranks on 1 node, started by mpich (mpiexec -n 2)"),
        (
            "torchrun",
            2,
            "flora-hpc bench cluster; 2 ranks on 1 node, started by torchrun (torchrun, --nnodes 1 --nproc-per-node 2)",
        ),
    ],
)
def test_the_command_says_how_many_ranks_ran_it(launcher: str, ranks: int, said: str) -> None:
    result = whole()
    result["topology"] |= {"launcher": launcher, "num_ranks": ranks, "num_nodes": 1}
    assert cluster_page.machine(result)["command"] == said


def test_the_busiest_node_is_shown_with_its_cores() -> None:
    nodes = [{"host": "n0", "cores": 8, "load": 0.5}, {"host": "n1", "cores": 1, "load": 2.0}]
    assert cluster_page.loads(nodes) == "2.00 on 1 core of n1"
    assert cluster_page.loads([{"host": "n0"}]) == "not recorded", "a result of an older program"


def test_names_in_the_bar_have_contrast_and_room() -> None:
    assert (phase_bar.luminance("#ffffff"), phase_bar.luminance("#000000")) == (pytest.approx(1), 0)
    assert phase_bar.text_colour("#f2b632") == phase_bar.DARK_TEXT, "yellow"
    assert phase_bar.text_colour("#b5488f") == phase_bar.LIGHT_TEXT, "purple"
    bar = phase_bar.draw({"wait": {"share": 0.9}, "comm": {"share": 0.08}, "server": {"share": 0.02}})
    assert bar.count('class="upright"') == 1, "comm"
    assert [name for name in ("wait", "comm", "server") if f">{name}</text>" in bar] == ["wait", "comm"]
    assert '<rect x="90.00%" width="8.00%"' in bar
    assert "server 2.0%" in bar


def test_a_result_in_which_nobody_is_slowest() -> None:
    bare = whole()
    bare["slowest"] |= {"rank": None, "node": None}
    page = cluster_page.make(bare)
    assert 'id="curve"' in page
    assert "works longest" not in page
