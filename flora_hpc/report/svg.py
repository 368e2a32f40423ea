"""A figure as SVG inside a page: text stays text, colours follow light and dark, names do not clash."""

import html
import io
import re

from matplotlib.figure import Figure

from flora_hpc.report.style import DARK

BEFORE_ROOT = re.compile(r"^.*?(?=<svg)", re.S)
NOT_NEEDED = re.compile(r"<metadata>.*?</metadata>|<style type=\"text/css\">.*?</style>|<!--.*?-->", re.S)
NAME = re.compile(r' id="([^"]+)"')
MEANT = re.compile(r'(?:href="#|url\(#)([^")]+)')
SHAPE = re.compile(r' (?:d|x|y|width|height|points|transform)="[^"]*"')
DECIMALS = re.compile(r"(\d\.\d\d)\d+")


def inline(figure: Figure, name: str, label: str) -> str:
    """The figure for a page. Its ids start with `name`; `label` is what it is for those who do not see it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True, dpi=150)
    text = NOT_NEEDED.sub("", BEFORE_ROOT.sub("", buffer.getvalue()))
    pictures = re.findall(r'"data:[^"]*"', text)
    for number, picture in enumerate(pictures):  # whose letters are no numbers and no colours
        text = text.replace(picture, f'"@{number}@"', 1)
    meant = set(MEANT.findall(text))
    text = NAME.sub(lambda found: f' id="{name}-{found[1]}"' if found[1] in meant else "", text)
    text = MEANT.sub(lambda found: found[0][: -len(found[1])] + f"{name}-{found[1]}", text)
    text = SHAPE.sub(lambda found: DECIMALS.sub(r"\1", found[0]), text)
    for number, colour in enumerate(DARK):
        text = text.replace(colour, f"var(--c{number})")
    text = re.sub(r"\s*\n\s*", " ", text)
    for number, picture in enumerate(pictures):
        text = text.replace(f'"@{number}@"', picture)
    head = re.match(r"<svg[^>]*>", text)
    box = re.search(r'viewBox="([^"]+)"', text)
    assert head
    assert box
    opening = f'<svg viewBox="{box[1]}" role="img" aria-label="{html.escape(label)}"><title>{html.escape(label)}</title>'
    return opening + text[head.end() :]


def variables(dark: bool) -> str:
    """The colours of all figures as CSS variables."""
    return "".join(f"--c{number}:{dark_one if dark else light};" for number, (light, dark_one) in enumerate(DARK.items()))


def variable(colour: str) -> str:
    """The variable that stands for a colour of `style`."""
    return f"var(--c{list(DARK).index(colour)})"
