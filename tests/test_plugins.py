import gc
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from flora_hpc import plugins
from flora_hpc.errors import UserError
from flora_hpc.plugins import BaseOptions


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Makes a family 'animals' of the given files (name=source); returns the family's name."""

    def make(**files: str) -> str:
        folder = tmp_path / f"animals_of_{tmp_path.name}"
        folder.mkdir()
        for name, source in {"__init__": "", **files}.items():
            (folder / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setitem(plugins.FAMILIES, "animals", folder.name)
        return "animals"

    return make


def test_python_does_not_look_for_garbage_while_a_member_is_imported(family: Callable[..., str]) -> None:
    animals = family(snail="import gc\nlooks = gc.isenabled()")
    assert gc.isenabled()
    assert not plugins.member(animals, "snail").looks
    assert gc.isenabled()


def test_where_python_does_not_look_for_garbage_it_does_not_start_to() -> None:
    gc.disable()
    try:
        with plugins.without_garbage_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_file_is_a_member_under_its_own_name(family: Callable[..., str]) -> None:
    animals = family(heron="legs = 2", cat="legs = 4")
    assert plugins.members(animals) == ["cat", "heron"]
    assert plugins.member(animals, "heron").legs == 2


def test_a_file_with_an_underscore_is_no_member(family: Callable[..., str]) -> None:
    animals = family(cat="", _tools="")
    assert plugins.members(animals) == ["cat"]
    with pytest.raises(UserError, match="no animal '_tools'"):
        plugins.member(animals, "_tools")


def test_listing_imports_no_member(family: Callable[..., str]) -> None:
    animals = family(needs_a_library="import no_such_library")
    assert plugins.members(animals) == ["needs_a_library"]


def test_an_unknown_name_is_answered_with_the_nearest_and_all(family: Callable[..., str]) -> None:
    animals = family(cat="", heron="")
    with pytest.raises(UserError) as error:
        plugins.member(animals, "Herron")
    assert str(error.value) == "no animal 'Herron'; did you mean 'heron'? (cat, heron)"


def test_a_name_that_is_near_to_nothing_is_answered_with_all(family: Callable[..., str]) -> None:
    animals = family(cat="", heron="")
    with pytest.raises(UserError) as error:
        plugins.member(animals, "xyz")
    assert str(error.value) == "no animal 'xyz' (cat, heron)"


@pytest.mark.parametrize(
    ("family_name", "name"),
    [
        ("methods", "flora"),
        ("datasets", "digits"),
        ("partitioners", "iid"),
        ("partitioners", "dirichlet"),
        ("algorithms", "fedavg"),
        ("backends", "mpi"),
        ("observers", "plain"),
    ],
)
def test_what_the_documents_name_is_there(family_name: str, name: str) -> None:
    assert callable(plugins.member(family_name, name).build)


def test_options_are_frozen() -> None:
    options = BaseOptions(name="cat")
    with pytest.raises(ValidationError, match="frozen"):
        options.name = "heron"


def test_options_refuse_unknown_keys() -> None:
    with pytest.raises(ValidationError, match="legs"):
        BaseOptions(name="cat", legs=4)


def test_a_package_may_hold_members_in_a_table(family: Callable[..., str]) -> None:
    source = "from types import ModuleType\nTABLE = {'heron': ModuleType('heron', 'A bird.')}\n"
    animals = family(__init__=source, cat="legs = 4")
    assert plugins.members(animals) == ["cat", "heron"]
    assert plugins.member(animals, "heron").__doc__ == "A bird."
    assert plugins.member(animals, "cat").legs == 4
    with pytest.raises(UserError, match=r"no animal 'herron'; did you mean 'heron'\?"):
        plugins.member(animals, "herron")
