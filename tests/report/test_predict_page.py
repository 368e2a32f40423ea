"""The page of predictions."""

from typing import Any

from flora_hpc.report import predict_page


def point(nodes: int, clients: int, **others: Any) -> dict[str, Any]:
    took = clients / nodes / 1000
    known = {"nodes": nodes, "ranks": nodes, "clients": clients, "value": took, "low": 0.9 * took, "high": 1.2 * took}
    return known | {"dominating": "train", "measured": None, "warnings": []} | others


RESULT: dict[str, Any] = {
    "nodes": 2,
    "ranks_per_node": 1,
    "gpus_per_node": 0,
    "threads_of_rank": 1,
    "clients": 10,
    "rounds": 50,
    "round_seconds": {"value": 0.5, "low": 0.4, "high": 0.6},
    "total_seconds": {"value": 30.0, "low": 20.0, "high": 40.0},
    "node_hours": {"value": 0.0167},
    "dominating": "train",
    "log_bytes": 10**6,
    "memory_bytes_of_rank": 10**9,
    "measured_up_to": {"ranks": 2, "clients": 1000},
    "runs": ["runs/<a> (1 rank)"],
}


def test_every_point_is_there_and_marked() -> None:
    points = [point(1, 10, measured=0.0105), point(2, 10, warnings=["comm <counts> as 0"]), point(1, 100), point(2, 100)]
    page = predict_page.make({"points": points, "left_out": {1000: "too few images"}}, RESULT, "a <config>")
    assert "Predicted: a &lt;config&gt;" in page
    for text in ("10.0 ms\n10.5 ms measured", "100.0 ms", "50.0 ms", "up to 2 ranks", "1,000 clients", "too few images"):
        assert text in page, text
    assert page.count("comm &lt;counts&gt; as 0") == 1
    assert 'id="rounds"' in page
    assert "mathdefault" not in page, "an axis without formulas"
    assert "runs/&lt;a&gt; (1 rank)" in page
    assert "://" not in page.replace("http://www.w3.org", ""), "nothing is fetched"


def test_a_page_without_points_says_why() -> None:
    page = predict_page.make(
        {"points": [], "left_out": {10: "no run <fits>"}}, RESULT | {"gpus_per_node": 4, "gpu_hours": {"value": 1}}, "x"
    )
    assert "no run &lt;fits&gt;" in page
    assert "1 GPU hours" in page
    assert 'id="rounds"' not in page
