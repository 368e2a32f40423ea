"""Pages of real runs in a real browser: what is drawn, what it complains about, what it asks the network for."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from flora_hpc.cli import app
from tests.conftest import ROOT
from tests.report.made_studies import grid, write_study

pytestmark = pytest.mark.browser
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
QUIET = [
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--disable-sync",
    "--disable-extensions",
]
MEASURE = """
<script>
const found = {};
for (const figure of document.querySelectorAll("figure")) {
  const drawn = [...figure.querySelectorAll("svg path, svg use, svg image")].filter(shape => !shape.closest("defs, clipPath"));
  const boxes = drawn.map(shape => shape.getBoundingClientRect());
  const texts = [...figure.querySelectorAll("svg text")].map(text => text.getBoundingClientRect());
  const frame = figure.querySelector("svg") && figure.querySelector("svg").getBoundingClientRect();
  found[figure.id] = {
    drawn: boxes.filter(box => box.width > 0.5 || box.height > 0.5).length,
    large: boxes.filter(box => box.width > 60 && box.height > 1).length,
    empty: figure.classList.contains("none"),
    cut: frame ? texts.filter(box => box.left < frame.left - 2 || box.right > frame.right + 2 || box.top < frame.top - 2
      || box.bottom > frame.bottom + 2).length : 0,
    wide: figure.getBoundingClientRect().right > innerWidth,
  };
}
const wide = document.documentElement.scrollWidth > innerWidth;
const colour = getComputedStyle(document.body).backgroundColor;
document.body.dataset.found = JSON.stringify({figures: found, wide: wide, colour: colour});
</script></body>
"""


class Seen(NamedTuple):
    """What a browser makes of a page."""

    figures: dict[str, Any]
    wide: bool  # must be scrolled to the side
    colour: str  # of its background
    console: list[str]
    asked: list[str]  # addresses that are no file


def is_of_page(request: dict[str, Any]) -> bool:
    """Browsers also look for updates of their own, which have no page as their origin."""
    return request.get("initiator", "not an origin") != "not an origin"


@pytest.fixture(scope="module")
def browser() -> str:
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium or Chrome")
    return found


@pytest.fixture
def look(browser: str, tmp_path: Path) -> Callable[..., Seen]:
    """Open a page: what is there, at a width, in the light or in the dark."""

    def open_page(page: Path, width: int = 1280, dark: bool = False) -> Seen:
        copy, log = tmp_path / "copy.html", tmp_path / "net.json"
        copy.write_text(page.read_text(encoding="utf-8").replace("</body>", MEASURE), encoding="utf-8")
        command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", *QUIET, f"--user-data-dir={tmp_path / 'profile'}"]
        command += [f"--log-net-log={log}", "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0"]
        command += [f"--window-size={width},2000", f"--blink-settings=preferredColorScheme={int(not dark)}", "--dump-dom"]
        result = subprocess.run([*command, copy.as_uri()], capture_output=True, text=True, timeout=120)
        measured = re.search(r'data-found="([^"]*)"', result.stdout)
        assert measured, result.stderr
        events = json.loads(log.read_text())["events"]
        asked = {event.get("params", {}).get("url", "") for event in events if is_of_page(event.get("params", {}))}
        others = sorted(one for one in asked if not one.startswith(("file:", "data:")))
        console = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
        return Seen(**json.loads(unescape(measured[1])), console=console, asked=others)

    return open_page


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three short runs of the quickstart."""
    folder = tmp_path_factory.mktemp("runs")
    for name, setting in (("base", "client.lr=5e-4"), ("slower", "client.lr=5e-5"), ("even", "partition.beta=10")):
        flags = ["-s", "rounds=2", "-s", "client.epochs=1", "-s", setting]
        command = ["run", str(ROOT / "configs" / "quickstart.yaml"), *flags, "--out", str(folder / name)]
        CliRunner().invoke(app, command, catch_exceptions=False)
    return [folder / name for name in ("base", "slower", "even")]


def check(seen: Seen, names: str) -> None:
    assert list(seen.figures) == names.split()
    for name, figure in seen.figures.items():
        assert not figure["empty"], name
        assert figure["drawn"] >= 5, f"{name}: axes and what they show"
        assert figure["large"] >= 1, name
        assert figure["cut"] == 0, f"{name}: text beyond its edge"
    assert not seen.wide
    assert seen.console == []
    assert seen.asked == []


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (420, True)])
def test_a_page_of_a_run(look: Callable[..., Seen], runs: list[Path], invoke: Callable[..., str], width: int, dark: bool) -> None:
    invoke("report", runs[0])
    seen = look(runs[0] / "report.html", width, dark)
    check(
        seen,
        "accuracy loss federation-bytes collective-bytes phases client-seconds client-sizes labels update-norms",
    )
    assert seen.colour == ("rgb(21, 24, 29)" if dark else "rgb(255, 255, 255)")


@pytest.mark.parametrize(("width", "dark"), [(1280, True), (420, False)])
def test_a_page_of_three_runs(
    look: Callable[..., Seen], runs: list[Path], invoke: Callable[..., str], tmp_path: Path, width: int, dark: bool
) -> None:
    page = tmp_path / "three.html"
    invoke("report", *runs, "-o", page)
    check(look(page, width, dark), "accuracy loss accuracy-by-bytes accuracy-by-seconds phases")
    text = page.read_text()
    assert [f"<th scope=col>{key}</th>" in text for key in ("client.lr", "partition.beta", "client.epochs")] == [True, True, False]


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (420, True)])
def test_a_page_of_a_study(look: Callable[..., Seen], invoke: Callable[..., str], tmp_path: Path, width: int, dark: bool) -> None:
    study = write_study(
        tmp_path / "study", [*grid(method__rank=[1, 2, 4], partition__beta=[0.1, 10.0]), ({"method.rank": 8}, "no luck")]
    )
    invoke("study", "report", study.path)
    names = "accuracy loss panels accuracy-by-bytes accuracy-by-training accuracy-by-seconds final-by-method.rank heat-map final"
    check(look(study.path / "report.html", width, dark), names)


def test_what_a_page_should_not_do_would_be_seen(look: Callable[..., Seen], tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    bad = '<figure id="gone"><svg viewBox="0 0 9 9"></svg></figure><img src="http://elsewhere.test/x.png"><script>nothing.here()</script>'
    page.write_text(f"<!DOCTYPE html><html><body>{bad}</body></html>")
    seen = look(page)
    assert seen.figures["gone"]["drawn"] == 0
    assert any("elsewhere.test" in one for one in seen.asked)
    assert any("nothing is not defined" in line for line in seen.console)
