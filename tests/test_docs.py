"""The site: commands in its pages are the program's, links lead somewhere, and the reference has all there is."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from flora_hpc import plugins
from flora_hpc.cli import app
from flora_hpc.records.schema import ATTRIBUTES, COLUMNS, SINCE
from tests.conftest import ROOT
from tools.site import reference

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DEFAULTS = {"study": "run"}  # commands that may be left out
WHOLE = typer.main.get_command(app)


def commands(text: str) -> Iterator[str]:
    """The lines of flora-hpc in indented or fenced blocks, without comments, redirections and launchers."""
    text = text.replace("\\\n", " ")
    fenced = re.sub(r"^```(bash|console)?\n(.*?)^```$", lambda m: re.sub(r"^", "    ", m[2], flags=re.M), text, flags=re.M | re.S)
    for line in re.findall(r"^ {4,}(.*flora-hpc .*)$", fenced, re.M):
        for part in re.split(
            r"[|&;>]| # |  #", re.sub(r"\"[^\"]*\"|'[^']*'", lambda m: m[0].replace("|", "_").replace("#", "_"), line)
        ):
            if match := re.search(r"(?:^|\s)flora-hpc ([a-z].*)$", part.strip()):
                yield match[1]


def parse(line: str) -> None:
    """Raise an error of the command line's parser where an option or a command is not the program's."""
    words, command = shlex.split(line), WHOLE
    while hasattr(command, "commands"):
        default = DEFAULTS.get(command.name)
        name = words.pop(0) if not default or words[0] in command.commands else default
        assert name in command.commands, f"flora-hpc {line}: no such command"
        command = command.commands[name]
    names = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"-h", "--help"}
    for word in words:
        option = word.partition("=")[0] if word.startswith("--") else word[:2]
        if word.startswith("-") and not re.match(r"-\d", word):
            assert option in names, f"flora-hpc {line}: no such option: {option}"


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_command_and_option_of_a_page_exists(page: Path) -> None:
    for line in commands(page.read_text()):
        parse(line)


@pytest.mark.parametrize("line", ["run quickstart --fast", "fly", "bench fly", "data inspect x -z"])
def test_a_stale_option_or_command_is_an_error(line: str) -> None:
    (command,) = commands(f"Text.\n\n    {line and 'flora-hpc ' + line}   # why\n")
    with pytest.raises(AssertionError, match="no such"):
        parse(command)


def test_lines_are_taken_from_both_kinds_of_blocks() -> None:
    text = "    srun -n 2 flora-hpc run a.yaml \\\n        -s rounds=1   # x\n\n"
    text += "```bash\nflora-hpc show runs/a > log && echo flora\n```\n`flora-hpc not taken`\n"
    assert [line.split() for line in commands(text)] == [["run", "a.yaml", "-s", "rounds=1"], ["show", "runs/a"]]


# --- the reference


def test_the_reference_has_every_key_command_algorithm_and_column() -> None:
    configuration, algorithms, columns = reference.configuration(), reference.algorithms(), reference.columns()
    for key in (
        "seed",
        "model.name",
        "client.lr",
        "evaluate.every",
        "data.path",
        "partition.beta",
        "method.rank",
        "attack.fraction",
    ):
        assert f"| `{key}` |" in configuration, key
    assert "| `client.lr` | number, &gt; 0 | `5e-05` |  | learning rate |" in configuration
    assert re.findall(r"^## (\w+)$", algorithms, re.M) == plugins.members("algorithms")
    for field in (*ATTRIBUTES, *(field for fields in COLUMNS.values() for field in fields)):
        assert f"| `{field.name}` |" in columns
    assert "| `sum_seconds` | float64 | s |" in columns
    assert set(SINCE) <= {(table, field.name) for table, fields in (*COLUMNS.items(), ("", ATTRIBUTES)) for field in fields}


def test_the_reference_of_commands_has_every_option() -> None:
    text = reference.commands()
    assert "## flora-hpc data inspect" in text
    assert "| `CONFIG` |" in text
    assert "| `--out DIR` |" in text
    assert "auto&#124;live&#124;plain" in text


def test_a_column_without_any_cell_is_left_out() -> None:
    assert reference.table(("key", "unit", "meaning"), [("a", "", "x"), ("b", "", "")]) == (
        "| key | meaning |\n| --- | --- |\n| a | x |\n| b |  |\n"
    )


def test_tables_of_text_name_the_column_of_each_cell_and_those_of_numbers_do_not() -> None:
    hooks = pytest.importorskip("tools.site.hooks")
    text = "<table><tr><th>key</th><th>type</th><th></th></tr><tr><td>a</td><td>b</td><td>c</td></tr></table>"
    row = '<td data-label="key">a</td><td data-label="type">b</td><td data-label="">c</td>'
    assert row in hooks.on_page_content(text)
    numbers = text.replace("<td>c", '<td style="text-align: right;">c')
    assert hooks.on_page_content(numbers) == numbers
    assert hooks.on_page_content("<code>-s x</code><code>a\n</code>") == '<code class="short">-s x</code><code>a\n</code>'


# --- links


def site(folder: Path, **pages: str) -> Any:
    """Build a site of a few pages with the checks of the real one."""
    config = pytest.importorskip("mkdocs.config")
    from mkdocs.commands.build import build

    (folder / "docs").mkdir()
    for name, text in pages.items():
        (folder / "docs" / f"{name}.md").write_text(text)
    checks = dict(
        re.findall(r"^  (omitted_files|absolute_links|unrecognized_links|anchors): (\w+)", (ROOT / "mkdocs.yml").read_text(), re.M)
    )
    (folder / "mkdocs.yml").write_text("site_name: x\nplugins: []\n")
    build(config.load_config(str(folder / "mkdocs.yml"), site_dir=str(folder / "site"), strict=True, validation=checks))


def test_whole_links_pass(tmp_path: Path) -> None:
    site(tmp_path, index="[a](other.md#there)", other="# Other\n\n## There\n")


@pytest.mark.parametrize("link", ["nowhere.md", "other.md#nowhere", "/other.md"])
def test_a_broken_link_or_anchor_is_an_error(link: str, tmp_path: Path) -> None:
    from mkdocs.exceptions import Abort

    with pytest.raises(Abort):
        site(tmp_path, index=f"[a]({link})", other="# Other\n")
