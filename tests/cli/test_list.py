import pytest
from typer.testing import CliRunner

from flora_hpc import plugins
from flora_hpc.cli import app
from flora_hpc.errors import UserError

Shown = dict[str, dict[str, list[str]]]


def output(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["list", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def parse(text: str) -> Shown:
    """Family -> member -> names of options, by how far a line is indented."""
    shown: Shown = {}
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        word = line.split()[0]
        if indent == 0:
            members = shown[line] = {}
        elif indent == 2:
            options = members[word] = []
        else:
            options.append(word)
    return shown


def expected(family: str) -> dict[str, list[str]]:
    def options(member: str) -> list[str]:
        fields = getattr(plugins.member(family, member), "Options", plugins.BaseOptions).model_fields
        return [name for name in fields if name != "name"]

    return {member: options(member) for member in plugins.members(family)}


def test_everything_that_can_be_chosen_is_listed() -> None:
    shown = parse(output())
    sections = shown.pop("configuration")
    assert shown == {family: expected(family) for family in plugins.FAMILIES}
    assert {"seed", "rounds", "model.name", "cohort.size", "client.lr", "evaluate.every", "comm.backend"} <= set(sections)


@pytest.mark.parametrize("family", plugins.FAMILIES)
def test_one_family_alone(family: str) -> None:
    assert parse(output(family)) == {family: expected(family)}


def test_an_option_comes_with_its_default_and_what_it_means() -> None:
    lines = output("partitioners").splitlines()
    assert "    beta = 0.1  concentration: 0.1 is strongly skewed, 100 is nearly IID" in lines


def test_an_option_without_a_default_is_required() -> None:
    assert "    path = required  the HDF5 file" in output("datasets").splitlines()


def test_a_member_comes_with_what_it_does() -> None:
    for family in plugins.FAMILIES:
        shown = output(family)
        for member in plugins.members(family):
            assert f"  {member}  {plugins.member(family, member).__doc__.splitlines()[0]}\n" in shown


def test_a_wrong_family_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no family 'aggregator'; did you mean 'aggregators'\? \(methods, datasets, .*\)"):
        output("aggregator")


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
