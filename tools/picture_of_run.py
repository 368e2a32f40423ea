"""Draw the last view of a finished run as an SVG: python tools/picture_of_run.py RUN OUT.svg"""

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME

from flora_hpc.records import hdf5file
from flora_hpc.records.panel import PanelData, heading, panel
from flora_hpc.records.sentences import describe

WIDTH, HEIGHT = 92, 24


def main(run: Path, out: Path) -> None:
    attributes, tables = hdf5file.read(run)
    rounds = tables["rounds"]
    place = "~/.cache/flora_hpc/features/digits.safetensors"  # where it is by default, whoever draws this
    picture = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    picture.print(heading(describe(attributes | {"features": place}, tables["topology"])))
    picture.print(panel(PanelData(rounds, int(rounds["round"].max())), WIDTH, HEIGHT))
    picture.save_svg(str(out), title="mpiexec -n 2 flora-hpc run quickstart", theme=SVG_EXPORT_THEME)
    out.write_text(plain(out.read_text()))


def plain(svg: str) -> str:
    """Rich's picture without the buttons of a window that nobody can press, and without fonts from a network."""
    svg = re.sub(r"\s*@font-face \{.*?\n    \}", "", svg, flags=re.S)
    svg = re.sub(r"\s*<circle [^>]*fill=\"#(ff5f57|febc2e|28c840)\"/>", "", svg)
    return svg.replace(
        "font-family: Fira Code, monospace", "font-family: ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
