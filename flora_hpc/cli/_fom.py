"""Figures of merit: lines `FOM name = value unit`, which JUBE, Ramble and ReFrame read with one pattern."""

from typing import Annotated, Any

import typer

Fom = Annotated[bool, typer.Option("--fom", help="lines `FOM name = value unit`, for Ramble, JUBE and ReFrame")]
Figure = tuple[str, float | int | str, str]  # name, value, unit


def show(figures: list[Figure]) -> None:
    """Print figures, one a line."""
    for name, value, unit in figures:
        print(f"FOM {name} = {value:.6g} {unit}" if isinstance(value, float) else f"FOM {name} = {value} {unit}", flush=True)


def of_cluster(result: dict[str, Any]) -> list[Figure]:
    """Figures of a cluster benchmark: whether it counts, the number, the largest size's seconds and efficiency, phases."""
    if not result["valid"]:
        return [("valid", "INVALID", "-")]  # an invalid result has no number
    of = result["class"]
    figures: list[Figure] = [
        ("valid", "VALID", "-"),
        ("class", f"{of['name']}{of['version']}-{of['scaling']}", "-"),
        ("fraction", float(of["fraction"]), "1"),
        ("ranks", int(result["topology"]["num_ranks"]), "1"),
        ("nodes", int(result["topology"]["num_nodes"]), "1"),
    ]
    if result["curve"]:
        last = result["curve"][-1]
        figures += [
            ("client_updates_per_second", float(result["number"]["value"]), "1/s"),
            ("round_seconds", float(last["round_seconds"]["median"]), "s"),
            ("efficiency", float(last["efficiency"]["value"]), "1"),
            *((f"{phase}_seconds", float(row["median"]), "s") for phase, row in result["phases"].items()),
        ]
    return figures
