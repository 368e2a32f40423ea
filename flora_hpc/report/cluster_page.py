"""The page to hand over about a cluster benchmark, from its result.json. `cluster.html` is its template."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure as Picture
from rich.filesize import decimal

from flora_hpc.comm.launch import started
from flora_hpc.records.views import count, seconds
from flora_hpc.report import cluster_figures, phase_bar, svg, template
from flora_hpc.report.page import Figure
from flora_hpc.report.style import styled

PURPOSE = {
    "strong": "The same work on more and more of the machine: what counts is how much faster it becomes.",
    "weak": "Work that grows with the machine: what counts is whether a round stays as fast.",
}


def make(result: Mapping[str, Any]) -> str:
    """The page of a result."""
    of = result["class"]
    with styled():
        return template.render(
            "cluster.html",
            heading=f"Cluster benchmark: class {of['name']}, {of['scaling']} scaling",
            result=result,
            warnings=result.get("warnings", []),
            clients=count(result["inputs"]["clients"], "client"),
            purpose=PURPOSE[of["scaling"]],
            headlines=headlines(result),
            sections=sections(result),
            rows=curve_rows(result),
            phases=phase_rows(result),
            links=link_rows(result),
            machine=machine(result),
        )


def headlines(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What stands in the boxes: name, value, remark."""
    place = result["topology"]
    rows = [("Machine", count(place["num_nodes"], "node"), f"{count(place['num_ranks'], 'rank')}, {place['backend']}")]
    if not result["curve"]:
        return rows
    number, last = result["number"], result["curve"][-1]
    rate = f"{number['value']:,.0f}"
    rows.insert(0, ("Client updates a second", rate, f"95 %: {number['low']:,.0f} to {number['high']:,.0f}"))
    rows.insert(1, ("A round", seconds(last["round_seconds"]["median"]), count(last["clients"], "client")))
    if len(result["curve"]) > 1:
        first = count(result["curve"][0]["units"], result["unit"])
        each = last["efficiency"]
        interval = f"{last['units']:,} against {first}, 95 %: {each['low']:.0%} to {each['high']:.0%}"
        rows.append(("Efficiency", f"{each['value']:.1%}", interval))
    return rows


def sections(result: Mapping[str, Any]) -> dict[str, list[Figure]]:
    """The figures under their headings; none without a whole curve."""
    if not result["curve"]:
        return {}
    unit, slowest = result["unit"], result["slowest"]
    bar = Figure("phases", "wide", "Phases on the largest size", PHASES_TEXT, phase_bar.draw(result["phases"]))
    figures = {"Where the time of a round goes": [bar]}
    if len(result["curve"]) > 1:
        text = (
            f"Parts of one size measured at once, so that all {unit}s work at every point. Dashed: the smallest size, without loss."
        )
        speed = figure("curve", "Client updates a second", text, cluster_figures.curve, result, "half")
        share = figure(
            "efficiency",
            "Efficiency",
            "The rate of a unit, against that of the smallest size.",
            cluster_figures.efficiency,
            result,
            "half",
        )
        figures = {"By size": [speed, share]} | figures
    if result["topology"]["num_nodes"] > 1 and slowest["node"]:
        node = slowest["node"]
        text = f"{node['name']} works longest, {node['over_median']:.2f} times the median (dashed), collectives left out."
        figures["Nodes"] = [figure("nodes", "Seconds of work in a round", text, cluster_figures.nodes, result, "half")]
    if pairs := result.get("pairs"):
        a, b = pairs["slowest"]
        text = f"An allreduce of a MiB. The slowest pair, {a} and {b}, has {pairs['slowest_over_median']:.2f} of the median rate."
        figures.setdefault("Nodes", []).append(
            figure("pairs", "Between each pair of nodes", text, cluster_figures.pairs, result, "half")
        )
    return figures


PHASES_TEXT = "Means over ranks, medians over rounds. Waiting is for slower ranks; comm is the transfer of collectives."


def figure(
    name: str, title: str, text: str, draw: Callable[[Mapping[str, Any]], Picture], result: Mapping[str, Any], kind: str = "wide"
) -> Figure:
    """One figure of the page."""
    return Figure(name, kind, title, text, svg.inline(draw(result), name, title))


def curve_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """The cells of the table by size."""
    return [
        [
            *([f"{row['units']:,}"] if result["unit"] == "node" else []),
            f"{row['ranks']:,}",
            f"{row['clients']:,}",
            seconds(row["round_seconds"]["median"]),
            f"{seconds(row['round_seconds']['low'])} to {seconds(row['round_seconds']['high'])}",
            f"{row['client_updates_per_second']['value']:,.0f}",
            f"{row['efficiency']['value']:.1%}",
            f"{row['efficiency']['low']:.1%} to {row['efficiency']['high']:.1%}",
        ]
        for row in result["curve"]
    ]


def phase_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """The cells of the table of phases."""
    return [
        [
            name,
            seconds(row["median"]),
            f"{seconds(max(0.0, row['low']))} to {seconds(max(0.0, row['high']))}",
            f"{row['share']:.1%}",
        ]
        for name, row in result["phases"].items()
    ]


def link_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """The cells of the table of links; none where links were not measured."""
    return [
        [
            f"{row['what']}, {row['scope']}",
            f"{row['ranks']:,}",
            decimal(row["bytes"]) if row["bytes"] else "-",
            *(seconds(row[f"{name}_seconds"]) for name in ("min", "median", "max")),
        ]
        for row in result.get("links", [])
    ]


def machine(result: Mapping[str, Any]) -> dict[str, str]:
    """What a reader must know to repeat it: name -> text."""
    place, start = result["topology"], result["start_up_seconds"]
    first = place["nodes"][0]
    return {
        "processor": f"{first['cpu']}, "
        f"{count(first['cores_of_rank'], 'core')} and {count(first['threads_of_rank'], 'thread')} a rank",
        "load before the start": loads(place["nodes"]),
        "GPU": first["gpu"] or "none",
        "memory of a node": decimal(first["memory"]),
        "peak memory of a rank": decimal(result["peak_memory_bytes"]),
        "start-up": f"{seconds(start['to_ranks_connected'])} until the ranks met, {seconds(start['model_and_features'])} "
        f"for model and features ({count(start['images_encoded'], 'image')} encoded)",
        "backend": place["backend"],
        "command": command(result),
        "measured": f"{result['time']}, on {result['host']}",
        "program": ", ".join(f"{name} {text}" for name, text in result["versions"].items() if text),
        "commit": result["commit"] or "an installed package",
        "settings": ", ".join(f"{name}={text}" for name, text in result["settings"].items()) or "none",
        "clocks and power": ", ".join(f"{name} {text}" for name, text in result["clocks"].items()) or "not readable",
        "digest after the last round": last_digest(result),
    }


def command(result: Mapping[str, Any]) -> str:
    """The command of each rank, and what started how many of it: a launcher's own options are not known."""
    place = result["topology"]
    ranks, nodes = place["num_ranks"], place["num_nodes"]
    how = {
        "none": "",
        "torchrun": f" (torchrun, --nnodes {nodes} --nproc-per-node {ranks // nodes})",
        "slurm": f" (srun -N {nodes} -n {ranks})",
    }.get(place["launcher"], f" (mpiexec -n {ranks})")
    where = f"{count(ranks, 'rank')} on {count(nodes, 'node')}"
    return f"{result['command']}; {where}, {started(place['launcher'])}{how}"


def loads(nodes: Sequence[Mapping[str, Any]]) -> str:
    """The highest load average of a node over the minute before the ranks worked, beside the cores of the node."""
    busiest = max((node for node in nodes if node.get("load") is not None), key=lambda node: node["load"], default=None)
    if busiest is None:
        return "not recorded"
    return f"{busiest['load']:.2f} on {count(busiest['cores'], 'core')}" + (f" of {busiest['host']}" if len(nodes) > 1 else "")


def last_digest(result: Mapping[str, Any]) -> str:
    """The digest of the adapter at the end, on the largest size."""
    by_size = result["digests"]["rounds"]
    digests = by_size[max(by_size, key=int)][0]
    return digests[-1] if digests else "none"
