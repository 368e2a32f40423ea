"""A figure as SVG inside a page: text stays text, colours follow light and dark, names do not clash."""

import io
import re
from xml.etree import ElementTree

from matplotlib.figure import Figure

from flora_hpc.report.style import DARK

NO_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # characters of names that would end the parsing
NOT_NEEDED = ("metadata", "style")  # the page has a style of its own
SHAPE = ("d", "x", "y", "width", "height", "points", "transform")  # attributes whose numbers need no more than two decimals
DECIMALS = re.compile(r"(\d\.\d\d)\d+")
REFERENCE = re.compile(r"(?<=url\(#)[^)]+")  # an id in a value
COLOURS = {colour: f"var(--c{number})" for number, colour in enumerate(DARK)}
COLOUR = re.compile("|".join(COLOURS))


def inline(figure: Figure, name: str, label: str) -> str:
    """The figure as SVG for a page. Its ids start with `name`; `label` names it for screen readers."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True, dpi=150)
    root = ElementTree.fromstring(NO_XML.sub("\ufffd", buffer.getvalue()))
    for parent in list(root.iter()):
        for child in [child for child in parent if _bare(child.tag) in NOT_NEEDED]:
            parent.remove(child)
    elements = list(root.iter())
    for element in elements:
        element.tag = _bare(element.tag)
        element.attrib = {_bare(key): _value(_bare(key), value, name) for key, value in element.attrib.items()}
        element.tail = None  # white space, here and between children
        element.text = element.text if element.tag in ("text", "tspan") else None
    values = [value for element in elements for value in element.attrib.values()]
    referenced = {reference for value in values for reference in REFERENCE.findall(value)}
    referenced |= {value[1:] for value in values if value.startswith("#")}
    for element in elements:
        if element.get("id") not in referenced:
            element.attrib.pop("id", None)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    title = ElementTree.Element("title")
    title.text = label
    root.insert(0, title)
    return ElementTree.tostring(root, encoding="unicode")


def _bare(name: str) -> str:
    """A name without its namespace, which HTML knows by itself."""
    return name.rpartition("}")[2]


def _value(key: str, value: str, name: str) -> str:
    """The new value of an attribute in the figure `name`."""
    if key == "id":
        return f"{name}-{value}"
    if key == "href":  # a name, or a picture as text
        return f"#{name}-{value[1:]}" if value.startswith("#") else "".join(value.split())
    if key in SHAPE:
        return DECIMALS.sub(r"\1", " ".join(value.split()))
    return REFERENCE.sub(rf"{name}-\g<0>", COLOUR.sub(lambda colour: COLOURS[colour[0]], value))


def variables(dark: bool) -> str:
    """The colours of all figures as CSS variables."""
    return "".join(f"--c{number}:{dark_one if dark else light};" for number, (light, dark_one) in enumerate(DARK.items()))


def variable(colour: str) -> str:
    """The variable that stands for a colour of `style`."""
    return COLOURS[colour]
