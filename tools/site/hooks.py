"""What MkDocs calls: pages that are made from the code or lie outside docs/, and links to files outside docs/."""

import logging
import re
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.site import reference  # noqa: E402 -- MkDocs imports this file from anywhere

log = logging.getLogger("mkdocs.hooks")
COPIES = {  # page -> file outside docs/ that it shows
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "flora-tiny.md": "flora_hpc/clip/flora_tiny/README.md",
    "digits.md": "flora_hpc/data/digits.md",
}
PAGE_OF = {source: page for page, source in COPIES.items()} | {"README.md": "index.md"}
API = "api.md"
SHORT = re.compile(r"<code>([^<\n]{1,24})</code>")  # a block ends with a line feed, so this is inline code
LINK = re.compile(r"\[([^\[\]]*)\]\(([^)#:\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that no file in docs/ has."""
    for name, make in reference.PAGES.items():
        files.append(File.generated(config, f"reference/{name}.md", content=make()))
    files.append(File.generated(config, "reference/api.md", content=(ROOT / "tools" / "site" / API).read_text()))
    for page, source in COPIES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links to files outside docs/ at their pages; links to code become text with its path."""
    source = COPIES.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    here = PurePosixPath(page.file.src_uri).parent

    def moved(match: re.Match[str]) -> str:
        target = normal(PurePosixPath(source).parent / match[2])
        if target.startswith("docs/"):
            goal = target.removeprefix("docs/")
        elif target in PAGE_OF:
            goal = PAGE_OF[target]
        elif (ROOT / target).exists():
            return f"{match[1]} (`{target}`)"
        else:
            return match[0]  # MkDocs says that it leads nowhere
        return f"[{match[1]}]({relative(goal, here)}{match[3] or ''})"

    return LINK.sub(moved, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Mark what assets/site.css treats apart: short inline code, which stays on one line, and tables, which telephones stack."""
    return re.sub(r"<table>.*?</table>", stackable, SHORT.sub(r'<code class="short">\1</code>', html), flags=re.S)


def stackable(match: re.Match[str]) -> str:
    """A table of three or more columns of text whose cells name their columns; tables of numbers stay as they are."""
    table = match[0]
    labels = [re.sub(r"<[^>]+>|\"", "", label).strip() for label in re.findall(r"<th[^>]*>(.*?)</th>", table, re.S)]
    if len(labels) < 3 or "text-align: right" in table:
        return table

    def labelled(row: re.Match[str]) -> str:
        names = iter(labels)
        return re.sub(r"<td", lambda cell: f'{cell[0]} data-label="{next(names, "")}"', row[0])

    return re.sub(r"<tr>.*?</tr>", labelled, table, flags=re.S).replace("<table>", "<table data-stack>", 1)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse a page that would ask a network for a script, a style, a font or a picture."""
    if remote := re.search(r"<(?:script|img|iframe)[^>]+src=.https?:[^>]+|<link[^>]+stylesheet[^>]+https?:[^>]+", output):
        log.warning("%s asks a network: %s", page.file.src_uri, remote[0])
    return output


def normal(path: PurePosixPath) -> str:
    """A path without `..`; those that lead out of the clone stay."""
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)


def relative(goal: str, folder: PurePosixPath) -> str:
    """The link from a page in `folder` to `goal`, both within docs/."""
    return "../" * (0 if str(folder) == "." else len(folder.parts)) + goal
