"""A configuration as a nested mapping: read from YAML files, with values put on top, before its values are checked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flora_hpc import bundled, filekinds, plugins, yamltext
from flora_hpc.config import OPTIONAL, PARTS
from flora_hpc.configerrors import examples, shown
from flora_hpc.errors import UserError, reason

FAMILY_OF = {
    "method": "methods",
    "data": "datasets",
    "partition": "partitioners",
    "algorithm": "algorithms",
    **dict.fromkeys(PARTS, "algorithms"),
    "attack": "attacks",
}
DEFAULT_MEMBER = {
    "method": "flora",
    "data": "digits",
    "partition": "iid",
    "algorithm": "fedavg",
    **dict.fromkeys(PARTS, "fedavg"),
    "attack": "sign_flip",
}
BY_NAME = ("algorithm", *OPTIONAL)  # sections that may be a name alone: `algorithm: fedprox`
MAX_BYTES = 2**20  # a larger file is no configuration
INSTEAD_OF = {"cohort.size": "cohort.fraction", "cohort.fraction": "cohort.size"}


class Layer(NamedTuple):
    """Values that replace those of a file, and their source's name in messages."""

    values: Mapping[str, Any]  # by dotted key
    name: str = "-s"


def read_all(path: Path, above: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """The content of a file on top of its `base` file, and the name of the file of each dotted key.

    `path` and `base` may also be the name of a bundled configuration. The path of `base` is relative to the file. `above` has the
    files that are built on this file.
    """
    path = bundled.located(path)
    tree = _read(path)
    base = tree.pop("base", None)
    values = dotted(tree)
    origin = dict.fromkeys(values, path.name)
    if base is None:
        return tree, origin
    if not isinstance(base, str):
        raise UserError(f"{path.name}: base: must be the path of one YAML file, not {shown(base)}")
    chain, beside = (*above, path.resolve()), path.parent / base
    of_base = beside if beside.is_file() else bundled.names().get(base, beside)
    if of_base.resolve() in chain:
        raise UserError(f"{path.name}: base: {base} is built on this file itself; take one of the two lines out")
    base_tree, base_origin = read_all(of_base, chain)
    grid = tree.pop("study", None)  # replaces the grid of the base as a whole; its keys have dots of their own
    values = dotted(tree)
    replaced = {key: value for key, value in values.items() if key.count(".") == 1 or not isinstance(value, dict)}
    apply(base_tree, Layer(replaced, path.name))
    return base_tree if grid is None else base_tree | {"study": grid}, base_origin | origin


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = yamltext.parse(yamltext.read(path, MAX_BYTES))
    except FileNotFoundError:
        if str(path) in plugins.members("datasets"):
            required = examples(plugins.member("datasets", str(path)).Options)
            options = "".join(f" -s data.{key}={value}" for key, value in required.items())
            raise UserError(f"{path}: give a configuration; for example quickstart -s data.name={path}{options}") from None
        nearby = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        raise UserError(f"{path}: there is no such file{bundled.cure(path, nearby)}") from None
    except OSError as error:
        unreadable = f"cannot be read ({reason(error)}); make it readable"
        raise UserError(f"{path}: {'is a folder; give a YAML file in it' if path.is_dir() else unreadable}") from None
    except yamltext.YamlError as error:
        instead = "; the configuration of a run is config.yaml beside it" if filekinds.kind(path) == filekinds.HDF5 else ""
        raise UserError(f"{path}: is not valid YAML: {error}{instead}") from None
    if not isinstance(tree, dict):
        content = "nothing" if tree is None else f"a {type(tree).__name__}"
        raise UserError(f"{path}: must hold keys and values such as 'rounds: 10', but holds {content}")
    return named(tree)


def dotted(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Every dotted key of a nested mapping, and its value."""
    keys: dict[str, Any] = {}
    for name, value in tree.items() if isinstance(tree, dict) else ():
        keys |= {f"{prefix}{name}": value} | dotted(value, f"{prefix}{name}.")
    return keys


def named(tree: dict[str, Any]) -> dict[str, Any]:
    """The same tree, where a section that is a name alone becomes a section with this name."""
    return {key: {"name": value} if key in BY_NAME and isinstance(value, str) else value for key, value in tree.items()}


def copied(tree: Any) -> Any:
    """A deep copy of a nested mapping, since `apply` changes it."""
    if isinstance(tree, Mapping):
        return {key: copied(value) for key, value in tree.items()}
    return [copied(value) for value in tree] if isinstance(tree, list | tuple) else tree


def split_override(text: str) -> tuple[str, Any]:
    """The key and the value of `-s key=value`. The value is one scalar, or a list, a mapping or a text in quotes as in YAML."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not key:
        raise UserError(f"-s {shown(text)[1:-1]}: write -s key=value, for example -s client.lr=1.0e-4")
    if not value:
        raise UserError(f"-s {key}=: has no value; write {key}=null for none")
    try:
        return key, yamltext.value(value)
    except yamltext.YamlError as error:
        raise UserError(f"-s {key}: {error}") from None


def apply(tree: dict[str, Any], layer: Layer) -> list[str]:
    """Put the values of a layer into the tree. Returns a note for each key that no longer applies and is removed."""
    notes = []
    values = {f"{key}.name" if key in BY_NAME and isinstance(value, str) else key: value for key, value in layer.values.items()}
    for key, value in values.items():
        section, _, rest = key.partition(".")
        alternative = INSTEAD_OF.get(key)
        if alternative and alternative not in values and value is not None:
            branch = tree.get(section)
            if isinstance(branch, dict) and branch.pop(alternative.partition(".")[2], None) is not None:
                notes.append(f"{alternative} of the file is set aside, since {key} was given")
        if section in FAMILY_OF and rest == "name" and isinstance(tree.get(section), dict):
            old_member = str(tree[section].get("name", DEFAULT_MEMBER[section]))
            dropped = _foreign_keys(FAMILY_OF[section], tree[section], old_member, str(value))
            for name in dropped:
                del tree[section][name]
            if dropped:
                notes.append(f"{section}.name={value}: dropped {', '.join(dropped)}, known to '{old_member}' only")
    for key, value in values.items():
        *parents, last = key.split(".")
        branch = tree
        for parent in parents:
            if branch.get(parent) is None:
                branch[parent] = {}
            branch = branch[parent]
            if not isinstance(branch, dict):
                raise UserError(f"{layer.name} {key}: '{parent}' holds a value, not keys of its own")
        branch[last] = value
    return notes


def _foreign_keys(family: str, branch: dict[str, Any], old: str, new: str) -> list[str]:
    """Keys of a section that are options of its old member but not of its new member."""
    try:
        old_options, new_options = (plugins.member(family, name).Options.model_fields for name in (old, new))
    except UserError:
        return []  # reported when the section is checked
    return [key for key in branch if key in old_options and key not in new_options]
