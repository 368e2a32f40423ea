"""Columns of a study as text: cells for people, and the whole table as CSV, LaTeX or values for JSON."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.filesize import decimal

from flora_hpc.records import views
from flora_hpc.records.study import for_json
from flora_hpc.studies.statistics import Spread
from flora_hpc.studies.table import DIFFERENCE, Column

INTERVAL = "95 % interval"
PARTS = ("mean", "std", "low", "high")  # of a spread in CSV
SHARES = {"accuracy": r" (\%)", "difference": r" (\% points)"}  # units that LaTeX shows in percent, and the end of their heading
LATEX = {letter: f"\\{letter}" for letter in "{}$&#%_"} | {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\symbol{34}",
    "[": "{[}",  # at the start of a row it would be an option of the \\ before it
}


@dataclass(frozen=True)
class Texts:
    """A column as people see it."""

    name: str  # of the column
    heading: str
    cells: tuple[str, ...]
    is_left: bool  # aligned at the left


def texts(columns: Sequence[Column]) -> list[Texts]:
    """The columns that people see; the interval of a spread is a column of its own."""
    result = []
    for column in columns:
        if column.for_people:
            cells, is_left = tuple(_cell(column, value) for value in column.values), column.unit in ("key", "text")
            result.append(Texts(column.name, column.heading, cells, is_left))
        if column.for_people and column.has_interval:
            name = "difference_interval" if column.name == DIFFERENCE else "interval"
            result.append(Texts(name, INTERVAL, tuple(_interval(column.unit, value) for value in column.values), False))
    return result


def _cell(column: Column, value: Any) -> str:
    if isinstance(value, Spread):
        std = f" ± {_number(column.unit, value.std)}" if _shows_std(column, value) else ""
        return _number(column.unit, value.mean) + std
    return value if isinstance(value, str) else _number(column.unit, value)


def _shows_std(column: Column, value: Spread) -> bool:
    return column.has_interval and column.name != DIFFERENCE and not math.isnan(value.std)


def _interval(unit: str, value: Any) -> str:
    if not isinstance(value, Spread) or math.isnan(value.low):
        return "-"
    return f"[{_number(unit, value.low)}, {_number(unit, value.high)}]"


def _number(unit: str, value: float | None) -> str:
    """A number with its unit: accuracies are shares with four digits, as everywhere in the terminal."""
    if value is None or math.isnan(value):
        return "-"
    if unit in SHARES:
        return f"{value:+.4f}" if unit == "difference" else f"{value:.4f}"
    if unit in ("bytes", "seconds"):
        text = decimal(round(abs(value))) if unit == "bytes" else views.seconds(abs(value))
        return f"-{text}" if value < 0 else text
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def as_csv(columns: Sequence[Column]) -> str:
    """CSV with a line a row. A spread has four columns: mean, std, low and high; what was not measured is empty."""
    names: list[str] = []
    cells: list[Sequence[Any]] = []
    for column in columns:
        if _has_spreads(column):
            names += [f"{column.name}_{part}" for part in PARTS]
            cells += [[getattr(value, part, None) for value in column.values] for part in PARTS]
        else:
            names.append(column.name)
            cells.append(column.values)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([for_json(value) for value in row] for row in zip(*cells, strict=True))
    return text.getvalue()


def as_rows(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """A dictionary a row for JSON, without the keys. A spread is an object; what was not measured is null."""
    columns = [column for column in columns if column.unit != "key"]
    rows = zip(*(map(_plain, column.values) if _has_spreads(column) else column.values for column in columns), strict=True)
    return [for_json(dict(zip((column.name for column in columns), row, strict=True))) for row in rows]


def _has_spreads(column: Column) -> bool:
    return column.has_interval or any(isinstance(value, Spread) for value in column.values)


def _plain(value: Any) -> Any:
    return asdict(value) if isinstance(value, Spread) else None


def as_latex(columns: Sequence[Column], note: str = "") -> str:
    """A table of LaTeX's package booktabs, with accuracies in percent. `note` is a comment on it."""
    heads, rows, places = [], [], ""
    for column in columns:
        if column.for_people:
            heads.append(latex(column.heading) + SHARES.get(column.unit, ""))
            rows.append([_latex_cell(column, value) for value in column.values])
            places += "l" if column.unit in ("key", "text") else "r"
        if column.for_people and column.has_interval:
            heads.append(latex(INTERVAL))
            rows.append([_latex_interval(column.unit, value) for value in column.values])
            places += "r"
    lines = [r"% needs \usepackage{booktabs}; mean $\pm$ standard deviation, and Student's t-interval, over n seeds"]
    lines += [f"% {' '.join(note.split())}"] if note else []
    lines += [rf"\begin{{tabular}}{{{places}}}", r"\toprule", " & ".join(heads) + r" \\", r"\midrule"]
    lines += [" & ".join(row) + r" \\" for row in zip(*rows, strict=True)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _latex_cell(column: Column, value: Any) -> str:
    if isinstance(value, Spread):
        std = rf" \pm {_latex_number(column.unit, value.std)}" if _shows_std(column, value) else ""
        return "--" if math.isnan(value.mean) else f"${_latex_number(column.unit, value.mean)}{std}$"
    if isinstance(value, str):
        return latex(value)
    return "--" if value is None or math.isnan(value) else f"${_latex_number(column.unit, value)}$"


def _latex_interval(unit: str, value: Any) -> str:
    if not isinstance(value, Spread) or math.isnan(value.low):
        return "--"
    return f"$[{_latex_number(unit, value.low)}, {_latex_number(unit, value.high)}]$"


def _latex_number(unit: str, value: float) -> str:
    """A number for LaTeX's mathematics."""
    if unit in SHARES:
        return f"{100 * value:+.2f}" if unit == "difference" else f"{100 * value:.2f}"
    number, _, rest = _number(unit, value).partition(" ")
    return number.replace(",", "{,}") + (rf"\,\mathrm{{{rest}}}" if rest else "")


def latex(text: str) -> str:
    """A text as LaTeX prints it."""
    return "".join(LATEX.get(letter, letter) for letter in text)
