"""`flora-hpc study best`: the best setting of a study for each method."""

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from flora_hpc import screen, yamltext
from flora_hpc.cli._args import AsJson
from flora_hpc.cli._study_show import Studies, open_all
from flora_hpc.cli._study_table import print_line, print_table
from flora_hpc.errors import UserError
from flora_hpc.records.study import Study, for_json
from flora_hpc.studies import choose, formats, table
from flora_hpc.studies.choose import Choice


def best(
    paths: Studies,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", show_default=False, help="the accuracy to choose by; final_validation_accuracy where it was measured"
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="KEY[,KEY]", show_default=False, help="a best setting for each value of these keys; by default of method.name"
        ),
    ] = None,
    then: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", show_default=False, help="write a study of the best settings with N other seeds"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", metavar="FILE.yaml", show_default=False, help="the file that --then writes")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Choose the best setting of a study for each method, by the mean validation accuracy over seeds.

    It prints the chosen settings and the options that set them. --then writes the study that compares them with other seeds.
    """
    if (then is None) != (out is None):
        raise UserError("--then N -o FILE.yaml: belong together; give both or neither")
    screen.needs_reader()
    study = open_all(paths)
    column = choose.metric_of(study, metric)
    keys = choose.grouping(study, by)
    choice = choose.best(study, column, keys)
    lines = write_next(study, choice, then, out) if then is not None and out is not None else []
    if as_json:
        print(json.dumps(contents(choice, keys), allow_nan=False))
        return
    console = Console(highlight=False)
    print_table(console, table.of_settings(choice.settings, column), column)
    for setting in choice.settings:
        print_line(console, f"to use it: {overrides(setting.keys) or 'the configuration as it is'}", "green")
    for note in choice.notes:
        print_line(console, f"note: {note}", "yellow")
    for line in lines:
        print_line(console, line)


def overrides(keys: dict[str, Any]) -> str:
    """The options of `flora-hpc run` that set these keys, as one types them in a shell."""
    return " ".join(f"-s {shlex.quote(f'{key}={yamltext.inline(value)}')}" for key, value in keys.items())


def contents(choice: Choice, by: list[str]) -> dict[str, Any]:
    """What --json prints."""
    rows = formats.as_rows(table.of_settings(choice.settings, choice.metric))
    keys = [{"keys": for_json(setting.keys), "overrides": overrides(setting.keys)} for setting in choice.settings]
    best = [one | row for one, row in zip(keys, rows, strict=True)]
    return {"metric": choice.metric, "by": by, "best": best, "notes": choice.notes}


def write_next(study: Study, choice: Choice, num_seeds: int, path: Path) -> list[str]:
    """Write the study of the chosen settings with other seeds. Returns lines that say how to play it."""
    tree = choose.recipe(study)
    seeds = choose.other_seeds(study, tree["config"], num_seeds)
    choose.write(path, choose.next_study(tree["config"], choice, seeds, str(study.path)))
    plugins = "".join(f" --plugin {shlex.quote(str(file))}" for file in tree.get("plugins") or [])
    what = f"{len(choice.settings)} settings with seeds {', '.join(map(str, seeds))}"
    command = f"flora-hpc study {shlex.quote(str(path))}{plugins} --out {shlex.quote(str(study.path) + '-then')}"
    return [f"{path}: {what}", f"play them: {command}"]
