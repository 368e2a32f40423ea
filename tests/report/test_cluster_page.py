from flora_hpc.report import cluster_page
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
    assert "0.01 of its clients: not the class itself" in cluster_page.make(whole(fraction=0.01))


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
