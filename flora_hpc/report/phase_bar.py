"""The phases of a round as one bar, which is as wide as the page while its text keeps its size."""

from collections.abc import Mapping

from flora_hpc.report.style import PHASES

REST = "#c9ced6"
DARK_TEXT, LIGHT_TEXT = "#14181d", "#fdfdfd"  # the same on a light and a dark page, as the fills are
LETTER, MARGIN, LINE = 2.0, 1.0, 3.0  # % of the bar on a page of 400 pixels: a letter, beside a name, and a line of text
HEIGHT = 48  # pixels: six letters upright
BRIGHT = 0.18  # luminance from which dark text has more contrast than light text (WCAG 2: ratios with 0.05 added are equal)


def draw(phases: Mapping[str, Mapping[str, float]]) -> str:
    """Key and bar as HTML, from the shares of the phases. The numbers stand in the key, names in the parts with room."""
    key, parts, left = [], [], 0.0
    total = sum(max(0.0, row["share"]) for row in phases.values()) or 1.0
    for name, row in phases.items():
        width, fill = 100 * max(0.0, row["share"]) / total, PHASES.get(name, REST)
        key.append(
            f'<span><svg aria-hidden="true"><rect width="10" height="10" fill="{fill}"/></svg>{name} {row["share"]:.1%}</span>'
        )
        parts.append(f'<rect x="{left:.2f}%" width="{width:.2f}%" height="{HEIGHT}" fill="{fill}"><title>{name}</title></rect>')
        if width >= LINE:
            way = "" if width > MARGIN + LETTER * len(name) else ' class="upright"'
            place = f'x="{left + width / 2:.2f}%" y="{HEIGHT // 2}" text-anchor="middle"'
            parts.append(f'<text {place}{way} fill="{text_colour(fill)}">{name}</text>')
        left += width
    bar = f'<div class="bar"><svg role="img" aria-label="Phases on the largest size">{"".join(parts)}</svg></div>'
    return f'<div class="key">{"".join(key)}</div>{bar}'


def text_colour(fill: str) -> str:
    """The colour of text on `fill`, #rrggbb: the one with more contrast."""
    return DARK_TEXT if luminance(fill) > BRIGHT else LIGHT_TEXT


def luminance(colour: str) -> float:
    """The relative luminance of #rrggbb, 0 to 1 (WCAG 2)."""
    levels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in levels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
