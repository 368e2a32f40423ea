"""A study that is played, for people: a panel for a terminal, and a line for each point that ended for a log."""

from collections.abc import Sequence
from math import isnan
from textwrap import wrap

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from flora_hpc.records import views
from flora_hpc.records.followstudy import RunningPoint, StudySnapshot
from flora_hpc.records.panel import GAP, LEAST_ROWS, WIDEST, Lines, bar_of, clock, labelled, lines_of, number, stacked
from flora_hpc.records.study import STATUSES, Point
from flora_hpc.records.studytime import point_seconds

STYLES = {"finished": "green", "failed": "red", "stopped": "yellow"}
MOST_FAILED, MESSAGE_LINES = 5, 2  # failed points in the panel, and lines of the message of each
LINES_A_FAILED = 8  # of the panel, for each failed point in it
NARROWEST_NAME = 12  # cells
RIGHT = 10  # cells of a column of numbers


def counts(snapshot: StudySnapshot) -> str:
    """How many points there are, and how many of each status."""
    parts = [f"{snapshot.count(status):,} {status}" for status in STATUSES if snapshot.count(status)]
    return f"{views.count(len(snapshot.points), 'point')}: {', '.join(parts)}"


def line(point: Point, num_done: int, num_points: int, left: float | None = None) -> str:
    """A point that ended on one line, for logs that are searched with grep."""
    parts = [f"point {num_done:,}/{num_points:,}", point.name]
    if point.status == "failed":
        parts.append(f"failed: {one_line(point.message) or 'without a message'}")
    elif point.status == "stopped":
        parts.append(f"stopped after round {point.num_rounds}")
    if not isnan(point.final_test_accuracy):
        parts.append(f"accuracy {point.final_test_accuracy:.4f}")
    if point_seconds(point):
        parts.append(views.seconds(point_seconds(point)))
    return " | ".join([*parts, *([f"left {clock(left)}"] if left else [])])


def lines(snapshot: StudySnapshot) -> list[str]:
    """A line for each point that ended since the snapshot before; the last one says how long the rest takes."""
    done = snapshot.num_done - sum(point.status != "stopped" for point in snapshot.ended)
    result = []
    for number_ended, point in enumerate(snapshot.ended, start=1):
        done += point.status != "stopped"
        is_last = number_ended == len(snapshot.ended) and point.status != "stopped"  # a study that stops does not go on now
        left = snapshot.seconds_left if is_last else None
        result.append(line(point, done, len(snapshot.points), left))
    return result


def one_line(text: str) -> str:
    """A text without line breaks."""
    return " ".join(text.split())


def study_panel(snapshot: StudySnapshot, width: int, height: int, note: str = "") -> Panel:
    """The panel for a terminal of this size. The last line of a terminal is the cursor's."""
    width = min(width, WIDEST)
    room = max(1, height - 3)  # less the frame
    rows = fit_lines(snapshot, max(16, width - 4), room, note)[:room]
    return Panel(Group(*rows), title="flora-hpc study", title_align="left", border_style="dim", width=width, height=len(rows) + 2)


def fit_lines(snapshot: StudySnapshot, width: int, room: int, note: str) -> list[RenderableType]:
    """The lines inside the panel: counts, bar and note always, then failed, running and ended points while there is room."""
    top: list[RenderableType] = [*lines_of(views.flow(head(snapshot), width)), bar(snapshot, width)]
    notes: list[RenderableType] = [Text(part, "yellow") for part in wrap(note or snapshot.doubt, width)]
    free = Lines(room)
    free.take(len(top) + len(notes))
    gaps = free.take(3 + bool(notes))
    failed = free.cut(failed_lines(snapshot, max(1, min(MOST_FAILED, free.count // LINES_A_FAILED)), width))
    ended = [point for point in reversed(snapshot.history) if point.status != "failed"]
    num_ended = min(len(ended), LEAST_ROWS)
    running = free.cut(running_lines(snapshot.running, free.count - (num_ended + 1 if num_ended else 0), width))
    return stacked([top, running, free.cut(ended_lines(ended[: max(0, free.count - 1)], width)), failed, notes], gaps)


def head(snapshot: StudySnapshot) -> list[Text]:
    """The number of points done, running, waiting and failed, and the time left."""
    left = snapshot.seconds_left if snapshot.status == "running" else None
    rest = [(status, STYLES.get(status, "")) for status in ("running", "waiting", "failed", "stopped")]
    return [
        labelled("points", f"{snapshot.num_done:,}/{len(snapshot.points):,}", "bold"),
        *(labelled(status, f"{snapshot.count(status):,}", style) for status, style in rest if snapshot.count(status)),
        *([labelled("left", clock(left))] if left is not None else []),
    ]


def bar(snapshot: StudySnapshot, width: int) -> Text:
    """A bar of the points done, and of the rounds done of running points."""
    parts = sum(min(1.0, each.round / each.num_rounds) for each in snapshot.running if each.num_rounds)
    return bar_of((snapshot.num_done + parts) / max(1, len(snapshot.points)), width)


def running_lines(running: Sequence[RunningPoint], room: int, width: int) -> list[Text]:
    """A table of running points in up to `room` lines, three or more: round, accuracy, rate; and how many others there are."""
    room = max(LEAST_ROWS, room)
    most = len(running) if len(running) < room else room - 2  # below the heading, above the number of others
    rows = [
        (
            each.point.name,
            f"{each.round}/{each.num_rounds}" if each.num_rounds else "-",
            number(each.accuracy),
            "-" if isnan(each.seconds_per_round) or each.seconds_per_round == 0 else f"{1 / each.seconds_per_round:.3g}",
            "" if each.run is None or not each.run.doubt else f"silent {views.seconds(each.run.silent)}",
        )
        for each in running[:most]
    ]
    columns = ["running", "round", "accuracy", "rounds/s", *([""] if any(row[4] for row in rows) else [])]
    others = [Text(f"and {len(running) - most:,} more", "dim")] if most < len(running) else []
    return [*table(columns, rows, width), *others] if rows else []


def ended_lines(points: Sequence[Point], width: int) -> list[Text]:
    """A table of points that finished or stopped."""
    rows = [
        (
            point.name,
            f"{point.num_rounds}" + " stopped" * (point.status == "stopped"),
            number(point.final_test_accuracy),
            number(point.best_test_accuracy),
            views.seconds(point_seconds(point)),
        )
        for point in points
    ]
    return table(["ended last", "rounds", "accuracy", "best", "time"], rows, width) if rows else []


def failed_lines(snapshot: StudySnapshot, most: int, width: int) -> list[Text]:
    """The last failed points, `most` of them, each with the beginning of its message; and how many others there are."""
    failed = [point for point in reversed(snapshot.history) if point.status == "failed"]
    rows: list[Text] = [Text("failed", "dim")] if failed else []
    for point in failed[:most]:
        text = f"{point.name}: {one_line(point.message)}"
        parts = wrap(text, width, subsequent_indent="  ", max_lines=MESSAGE_LINES, placeholder=" …")
        rows += [Text(part, STYLES["failed"]) for part in parts]
    others = len(failed) - most
    return [*rows, *([Text(f"and {others:,} more", "dim")] if others > 0 else [])]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[Text]:
    """Rows below a heading: names at the left, shortened where they must be, and as many columns of numbers as fit."""
    widths = [max(len(row[at]) for row in [columns, *rows]) for at in range(len(columns))]
    widths[1:] = [max(RIGHT, cells) for cells in widths[1:]]
    number_of = len(columns)
    while number_of > 1 and sum(widths[1:number_of]) + GAP * (number_of - 1) + min(NARROWEST_NAME, widths[0]) > width:
        number_of -= 1
    name_width = min(widths[0], width - sum(widths[1:number_of]) - GAP * (number_of - 1))
    result = []
    for row, style in zip([columns, *rows], ["dim", *("" for _ in rows)], strict=True):
        cells = [f"{shortened(row[0], name_width):<{name_width}}"]
        cells += [f"{cell:>{cells_wide}}" for cell, cells_wide in zip(row[1:number_of], widths[1:], strict=False)]
        result.append(Text((" " * GAP).join(cells), style))
    return result


def shortened(name: str, width: int) -> str:
    """A name in at most `width` characters: its middle is left out, since names of points differ at both ends."""
    if len(name) <= width:
        return name
    at_end = (width - 1) // 2
    return f"{name[: width - 1 - at_end]}…{name[len(name) - at_end :] if at_end else ''}"
