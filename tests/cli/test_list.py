import io
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from flora_hpc import plugins, yamltext
from flora_hpc.cli import app
from flora_hpc.cli.list_ import show_family, show_names
from flora_hpc.config import OPTIONAL, PARTS
from flora_hpc.errors import UserError
from tests import own_parts

SECTIONS = ("model", "features", "cohort", "client", "evaluate", "checkpoint", "records", "comm")
NAMES = [(family, member) for family in plugins.FAMILIES for member in plugins.members(family)]


@cache
def listed(*arguments: str) -> str:
    """What `list` says of the parts that come with the package."""
    return output(*arguments)


def output(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["list", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def by_heading(text: str, indent: int) -> dict[str, list[str]]:
    """The first words of lines with this indent, by the first word of the last line before them that has a smaller one."""
    shown: dict[str, list[str]] = {}
    for line in text.splitlines():
        depth = len(line) - len(line.lstrip())
        if depth < indent:
            heading = shown[line.split()[0]] = []
        elif depth == indent:
            heading.append(line.split()[0])
    return shown


def options_of(family: str, member: str) -> set[str]:
    return set(getattr(plugins.member(family, member), "Options", plugins.BaseOptions).model_fields) - {"name"}


def first_line(family: str, member: str) -> str:
    return str(plugins.member(family, member).__doc__).splitlines()[0]


def test_every_name_is_one_line_under_its_family() -> None:
    shown = by_heading(output().rpartition("\nflora-hpc list NAME")[0], 2)
    assert shown.pop("configuration") == [
        *("seed", "rounds", *OPTIONAL),
        *SECTIONS,
    ]
    assert shown == {family: plugins.members(family) for family in plugins.FAMILIES}
    assert len(output().splitlines()) < len(NAMES) + 30


@pytest.mark.parametrize(("family", "member"), NAMES)
def test_a_name_comes_with_what_it_is(family: str, member: str) -> None:
    (line,) = [line for line in listed(member).splitlines() if line == f"  {member}  {first_line(family, member)}"]
    assert line in listed(family).splitlines() or family == "algorithms"
    assert re.search(rf"^  {member} +{re.escape(first_line(family, member))}$", listed(), re.M)


def test_names_are_listed_without_the_seconds_that_torch_takes() -> None:
    program = "import sys; sys.modules['torch'] = None; from flora_hpc.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", program, "list"], capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    assert "  flora  " in result.stdout


@pytest.mark.parametrize("width", [40, 80])
def test_a_terminal_shows_a_name_on_one_line(width: int) -> None:
    text = io.StringIO()
    show_names(Console(file=text, width=width, force_terminal=True, color_system=None))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines[:-2])) == width
    assert sum(line.startswith("  ") for line in lines) == len(NAMES) + 2 + len(OPTIONAL) + len(SECTIONS)


@pytest.mark.parametrize("family", [family for family in plugins.FAMILIES if family != "algorithms"])
def test_a_family_tells_every_option_of_its_members(family: str) -> None:
    shown = by_heading(output(family), 4)
    common = set(shown.pop("options", []))
    for member in plugins.members(family):
        assert set(shown[member]) <= options_of(family, member) <= set(shown[member]) | common


def test_what_all_of_a_family_share_is_told_once() -> None:
    shown = output("datasets")
    assert by_heading(shown, 4)["options"] == ["caption", "split", "test_fraction", "validation_fraction", "damaged", "root"]
    counts = {key: shown.count(f"\n    {key} = ") for key in ("split", "test_fraction", "validation_fraction", "damaged", "root")}
    assert set(counts.values()) == {1}, counts
    (root,) = [line for line in shown.splitlines() if line.startswith("    root = ")]
    assert root.endswith("  (not digits, hdf5, imagefolder, pairs)"), "they have no such option"
    assert by_heading(shown, 4)["pairs"][0] == "caption", "its own is another one"


@pytest.mark.parametrize(("family", "member"), NAMES)
def test_a_name_alone_comes_with_all_its_options(family: str, member: str) -> None:
    of_family = re.split(r"\n(?=\S)", listed(member).partition(f"{family}\n")[2])[0]
    assert set(re.findall(r"^    (\w+) = ", of_family, re.M)) == options_of(family, member)


# --- algorithms


def test_every_algorithm_is_one_row_with_its_parts_and_its_paper() -> None:
    rows = {line.split()[0]: " ".join(line.split()) for line in output("algorithms").splitlines()[2:-1]}
    assert list(rows) == plugins.members("algorithms")
    assert rows["fedprox"] == "fedprox local FedProx: a pull towards the server's adapter in every local step. 1812.06127"
    assert rows["scaffold"].startswith("scaffold local, combine, server SCAFFOLD: ")
    assert not any("see its file" in row for row in rows.values())


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_folds_the_table_of_algorithms(width: int) -> None:
    text = io.StringIO()
    show_family(Console(file=text, width=width, force_terminal=True, color_system=None), "algorithms")
    *lines, _ = text.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert ("1812.06127" in text.getvalue()) == (width == 120)
    for name in plugins.members("algorithms"):
        assert sum(line.startswith(f"{name} ") for line in lines) == 1


def test_an_algorithm_comes_with_its_formula_and_what_it_sends() -> None:
    lines = [" ".join(line.split()) for line in output("scaffold").splitlines()]
    assert lines[2] == "parts local, combine, server"
    assert lines[3].startswith("formula gradient - c_i + c; c_i = mean gradient of the round; ")
    assert lines[4:7] == ["up update, change of c_i", "down adapter, c", "paper arXiv 1910.06378"]
    assert "it is also defined for Adam" in lines[7]


def test_an_algorithm_of_a_users_own_needs_no_constants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor need it be built without its options."""
    monkeypatch.setattr(plugins, "_used", {})
    for name, line in (("my_rule", "momentum: float = 0.5"), ("my_other", "momentum: float")):
        source = own_parts.FEDAVGM.lstrip().replace(
            'momentum: float = Field(0.9, ge=0, lt=1, description="share of the last step that is kept")', line
        )
        (tmp_path / f"{name}.py").write_text(source)
        plugins.use(tmp_path / f"{name}.py")
    assert " ".join(output("my_rule").split()).startswith(
        f"algorithms my_rule Server momentum (Hsu et al., arXiv 1909.06335). [{tmp_path}/my_rule.py] parts server momentum = 0.5"
    )
    assert "parts  see its file" in output("my_other")


@pytest.mark.parametrize("part", PARTS)
def test_the_sections_of_parts_are_explained(part: str) -> None:
    first, example, names, _ = output(part).splitlines()
    assert first.startswith(f"{part}  ")
    assert "an algorithm's name and options, instead of this part of `algorithm`" in first
    options = yamltext.parse(example.removeprefix("  for example "))[part]
    assert options["name"] in names
    plugins.member("algorithms", options["name"]).Options(**options)


def test_a_name_of_two_families_is_told_twice() -> None:
    lines = output("hdf5").splitlines()
    assert [line for line in lines if line[0] != " "] == ["datasets", "observers"]


def test_sections_of_the_configuration() -> None:
    keys = by_heading(output("configuration"), 2)["configuration"]
    assert {"seed", "rounds", "model.name", "cohort.size", "client.lr", "evaluate.every", "comm.backend"} <= set(keys)
    for name in ("client", "evaluate"):
        assert by_heading(output(name), 2)[name] == [key for key in keys if key.startswith(f"{name}.")]


def test_an_option_comes_with_its_default_and_what_it_means() -> None:
    line = "    beta = 0.1  concentration: 0.1 is strongly skewed, 100 is nearly IID"
    assert line in output("partitioners").splitlines()
    assert line in output("dirichlet").splitlines()


def test_an_option_without_a_default_is_required() -> None:
    assert "    path = required  the HDF5 file" in output("datasets").splitlines()


@pytest.mark.parametrize(("wrong", "right"), [("algorithm", "algorithms"), ("floar", "flora"), ("clients", "client")])
def test_a_wrong_name_is_answered_with_the_nearest(wrong: str, right: str) -> None:
    sentence = f"no family, member or section '{wrong}'; did you mean '{right}'?; flora-hpc list shows all of them"
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        output(wrong)


def test_what_every_method_trains_of_a_model() -> None:
    """ViT-B-32, by hand: 12 blocks of 2 x (512 x 2) numbers; all 151,277,313; ten classes of 512 numbers and one bias."""
    rows = {line.split("│")[1].strip(): line for line in output("methods", "--model", "ViT-B-32").splitlines() if "│" in line}
    assert [cell.strip() for cell in rows["flora"].split("│")[2:5]] == ["24,576", "98,304", "frozen"]
    assert [cell.strip() for cell in rows["fedfft"].split("│")[2:5]] == ["151,277,313", "605,109,252", "trained"]
    assert [cell.strip() for cell in rows["fedlc"].split("│")[2:5]] == ["5,130", "20,520", "frozen"]
    assert [cell.strip() for cell in rows["fedprompt"].split("│")[2:5]] == ["2,048", "8,192", "frozen"]


def test_the_number_of_classes_counts_for_a_classifier() -> None:
    assert " 51,300 " in output("methods", "--model", "ViT-B-32", "--classes", "100")


def test_a_wrong_model_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no model 'ViT-B-33'; did you mean 'ViT-B-32'"):
        output("methods", "--model", "ViT-B-33")
