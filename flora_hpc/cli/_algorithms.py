"""What `flora-hpc list` says about algorithms: the parts that each defines, its formula, and what crosses the network."""

import inspect
import re

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flora_hpc import plugins
from flora_hpc.config import PARTS, ClientConfig

FAMILY = "algorithms"
LABELS = {
    "FORMULA": "formula",
    "UP": "up",
    "DOWN": "down",
    "PAPER": "paper",
}  # constants of an algorithm's file; a user's may lack them
MAX_PARTS = 22  # columns of a terminal for names of parts
TENSORS = tuple(  # of method dual_lora, which every algorithm can share out
    f"transformer.resblocks.{block}.attn.out_proj.{kind}_{factor}"
    for block in range(12)
    for kind in ("lora", "private")
    for factor in "AB"
)
CITATION = re.compile(r" \([^()]*\d{4}\)\.(?=$| \[)")  # at the end of a first line, or before the source of a user's file
EXAMPLES = {  # of the sections that name the algorithm whose part a run takes
    "sharing": "sharing: {name: fedper, num_private: 2}",
    "local": "local: {name: fedprox, mu: 0.1}",
    "transform": "transform: {name: top_k, fraction: 0.1}",
    "combine": "combine: {name: fedavg, weights: uniform}",
    "server": "server: {name: fedadam, lr: 0.03}",
}


def parts_of(name: str) -> list[str]:
    """The parts that an algorithm defines for LoRA adapters, with its default options; none where it cannot be built for these."""
    from flora_hpc.algorithms._algorithm import Algorithm, Setting  # torch takes seconds to import

    setting = Setting(ClientConfig(loss="classification"), TENSORS, paired=False, num_registered=100)
    try:
        options = plugins.member(FAMILY, name).Options(name=name)
        algorithm = plugins.build(FAMILY, options, Algorithm, setting)
    except Exception:  # a user's file may have an option without a default, need other tensors, or raise any error
        return []
    return [part for part in PARTS if getattr(algorithm, part) is not None]


def parts_text(name: str) -> str:
    """The same as a text."""
    return ", ".join(parts_of(name)) or "see its file"


def table(lines: dict[str, str], has_papers: bool, is_folded: bool) -> Table:
    """One row for each algorithm, with its paper if `has_papers`. `lines` has the first line of each."""
    rows = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    rows.add_column("name", header_style="dim", no_wrap=True)
    rows.add_column("its parts", header_style="dim", max_width=MAX_PARTS if is_folded else None)
    rows.add_column("what it does", header_style="dim")
    if has_papers:
        rows.add_column("paper", header_style="dim")
    for name, line in lines.items():
        paper = facts(name).get("paper", "").removeprefix("arXiv ")
        text = CITATION.sub(".", line) if paper else line
        rows.add_row(f"[green]{name}[/]", parts_text(name), escape(text), *([escape(paper)] if has_papers else []))
    return rows


def facts(name: str) -> dict[str, str]:
    """The formula of an algorithm, what crosses the network, its paper, and the rest of its docstring: label -> text."""
    module = plugins.member(FAMILY, name)
    _, _, rest = inspect.cleandoc(module.__doc__ or "").partition("\n")
    texts = {label: str(getattr(module, constant, "")) for constant, label in LABELS.items()} | {"more": " ".join(rest.split())}
    return {label: text for label, text in texts.items() if text}


def facts_table(name: str) -> Table:
    """One row for each fact of an algorithm."""
    rows = Table.grid(padding=(0, 2, 0, 0))
    for label, text in {"parts": parts_text(name), **facts(name)}.items():
        rows.add_row(f"    [dim]{label}[/]", escape(text))
    return rows


def show_section(console: Console, part: str, description: str) -> None:
    """Print what a section such as `server` of the configuration takes, and the algorithms that define this part."""
    names = [name for name in plugins.members(FAMILY) if part in parts_of(name)]
    console.print(f"[bold]{part}[/]  {escape(description)}", soft_wrap=True)
    console.print(f"  for example {escape(EXAMPLES[part])}", soft_wrap=True)
    console.print(f"  algorithms with this part: {', '.join(names)}", soft_wrap=True)
    console.print("  [dim]flora-hpc list NAME shows the options of an algorithm[/]", soft_wrap=True)
