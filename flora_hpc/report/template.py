"""Fill in the templates of pages."""

from importlib.resources import files
from typing import Any

import jinja2

from flora_hpc import __version__
from flora_hpc.report import svg
from flora_hpc.report.mark import MARK


def render(name: str, **values: Any) -> str:
    """The page of a template, from its `values` and from what all pages have: colours, style, version, mark."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_text),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    common = {
        "mark": MARK,
        "light": svg.variables(False),
        "dark": svg.variables(True),
        "style": _text("page.css"),
        "version": __version__,
    }
    return environment.get_template(name).render(common | values)


def _text(name: str) -> str:
    return files("flora_hpc.report").joinpath(name).read_text(encoding="utf-8")
