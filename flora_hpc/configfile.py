"""Read a configuration from YAML and `-s key=value`, and report all its mistakes at once."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from flora_hpc import filekinds, plugins, yamltext
from flora_hpc.config import PARTS, CommConfig, Config
from flora_hpc.configerrors import SENTENCES, explain, shown
from flora_hpc.errors import UserError, did_you_mean, reason
from flora_hpc.plugins import BaseOptions
from flora_hpc.userparts import Part

FAMILY_OF = {"method": "methods", "data": "datasets", "partition": "partitioners", "algorithm": "algorithms"} | dict.fromkeys(
    PARTS, "algorithms"
)
DEFAULT_MEMBER = {"method": "flora", "data": "digits", "partition": "iid", "algorithm": "fedavg"} | dict.fromkeys(PARTS, "fedavg")
BY_NAME = ("algorithm", *PARTS)  # sections that may be a name alone: `algorithm: fedprox`
MAX_BYTES = 2**20  # a larger file is no configuration
INSTEAD_OF = {"cohort.size": "cohort.fraction", "cohort.fraction": "cohort.size"}


class Layer(NamedTuple):
    """Values that replace those of a file, and their source's name in messages."""

    values: Mapping[str, Any]  # by dotted key
    name: str = "-s"


def load(path: Path, overrides: list[str] | None = None) -> tuple[Config, list[str]]:
    """Read a YAML file on top of its `base` file, and apply `key.sub=value` overrides.

        base file  <-  file  <-  -s key=value        later values replace earlier values

    Returns the configuration and notes on keys that the overrides remove. Raises UserError with one line per mistake.
    """
    tree, origin = _read_all(path)
    return _checked(tree, origin, Layer(dict(_split_override(text) for text in overrides or [])), path.name)


def load_values(source: Path | Mapping[str, Any], given: Mapping[str, Any]) -> tuple[Config, list[str]]:
    """Like `load`, from a file or a nested mapping; `given` has Python values by dotted key."""
    tree, origin = _read_all(source) if isinstance(source, Path) else (_named(_copied(source)), {})
    return _checked(tree, origin, Layer(given, "override"), source.name if isinstance(source, Path) else "config")


def _checked(tree: dict[str, Any], origin: dict[str, str], layer: Layer, file: str) -> tuple[Config, list[str]]:
    """The configuration from `tree` with `layer` on top. `origin` has the file of each key; other keys come from `file`."""
    notes = []
    if "aggregator" in tree and "algorithm" not in tree:  # configurations and runs of earlier versions
        tree["algorithm"] = tree.pop("aggregator")
        notes.append("aggregator: is called algorithm now, and was read as such")
    notes += _apply(tree, layer)
    valid_keys = _valid_keys(tree)
    problems: list[tuple[str, str]] = []
    if tree.pop("aggregator", None) is not None:
        problems.append(("aggregator", "aggregator: is called algorithm now; give that alone"))
    for section, family in FAMILY_OF.items():
        if section not in PARTS or tree.get(section) is not None:
            tree[section] = _member_options(section, family, tree.get(section, {}), valid_keys, problems)
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        problems += explain(error, "", valid_keys)
    if problems:
        raise UserError("\n".join(f"{_source(key, layer, origin) or f'{file}:'} {text}" for key, text in problems))
    if config.model.pretrained == "none":
        notes.append("model.pretrained is 'none': RANDOM weights, good for measuring speed; accuracies mean nothing")
    return config, notes


def _copied(tree: Any) -> Any:
    """A deep copy of a nested mapping, since `_apply` changes it."""
    if isinstance(tree, Mapping):
        return {key: _copied(value) for key, value in tree.items()}
    return [_copied(value) for value in tree] if isinstance(tree, list | tuple) else tree


def load_comm(path: Path, overrides: list[str] | None = None) -> CommConfig:
    """The section `comm` alone, also of a configuration with mistakes; the defaults where it cannot be read."""
    return _comm(lambda: _read_all(path)[0], lambda: dict(_split_override(text) for text in overrides or []))


def load_comm_values(source: Path | Mapping[str, Any], values: Mapping[str, Any]) -> CommConfig:
    """The same from a file or a nested mapping, with overrides as Python values by dotted key."""
    return _comm(lambda: _read_all(source)[0] if isinstance(source, Path) else _named(_copied(source)), lambda: values)


def _comm(read: Callable[[], dict[str, Any]], overrides: Callable[[], Mapping[str, Any]]) -> CommConfig:
    try:
        tree = read()
    except UserError:
        tree = {}
    try:
        _apply(tree, Layer(overrides()))
        return CommConfig.model_validate(tree.get("comm", {}))
    except (UserError, ValidationError):
        return CommConfig()


def comm_with(backend: str) -> CommConfig:
    """The section `comm` with a backend from the command line. Raises UserError for an unknown backend."""
    try:
        return CommConfig(backend=backend)
    except ValidationError as error:
        raise UserError(f"--backend: {explain(error, '', [])[0][1].removeprefix('backend: ')}") from None


def load_data(what: str, overrides: list[str] | None = None) -> BaseOptions:
    """The section `data` alone, from a YAML file or from a dataset's name. Raises UserError like `load`."""
    tree: dict[str, Any] = _read_all(Path(what))[0] if what.endswith((".yaml", ".yml")) else {"data": {"name": what}}
    given = dict(_split_override(text) for text in overrides or [])
    if foreign := [key for key in given if key.partition(".")[0] != "data"]:
        raise UserError(f"-s {foreign[0]}: has nothing to do with the data; give keys such as data.root")
    _apply(tree, Layer(given))
    problems: list[tuple[str, str]] = []
    valid_keys = [key for key in _valid_keys(tree) if key.startswith("data.")]
    options = _member_options("data", "datasets", tree.get("data", {}), valid_keys, problems)
    if problems:
        raise UserError("\n".join(text for _, text in problems))
    return options


def own_parts(config: Config) -> list[Part]:
    """The user's plugins that a configuration names."""
    members = {(family, options.name): None for section, family in FAMILY_OF.items() if (options := getattr(config, section))}
    parts = [plugins.own_part(family, name) for family, name in members]
    return [part for part in parts if part is not None]


def differences(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """The dotted keys with different values, and both values."""
    left, right = (_dotted(config.model_dump(mode="json")) for config in (one, other))
    keys = [key for key in left | right if not isinstance(left.get(key), dict) and not isinstance(right.get(key), dict)]
    return {key: (left.get(key), right.get(key)) for key in keys if left.get(key) != right.get(key)}


def _source(key: str, layer: Layer, origin: dict[str, str]) -> str | None:
    """The source of a mistake at `key`: the layer's name or the key's file.

    The layer counts when it sets `key` or a section around it, or a key below `key` while no file sets `key`.
    """
    sets_key = any(key == name or key.startswith(f"{name}.") for name in layer.values)
    sets_below = any(name.startswith(f"{key}.") for name in layer.values)
    if sets_key or (sets_below and key not in origin):
        return layer.name
    return f"{origin[key]}:" if key in origin else None


def _read_all(path: Path, above: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """The content of a file on top of its `base` file, and the name of the file of each dotted key.

    The path of `base` is relative to the file. `above` has the files that are built on this file.
    """
    tree = _read(path)
    base = tree.pop("base", None)
    values = _dotted(tree)
    origin = dict.fromkeys(values, path.name)
    if base is None:
        return tree, origin
    if not isinstance(base, str):
        raise UserError(f"{path.name}: base: must be the path of one YAML file, not {shown(base)}")
    chain = (*above, path.resolve())
    if (path.parent / base).resolve() in chain:
        raise UserError(f"{path.name}: base: {base} is built on this file itself; take one of the two lines out")
    base_tree, base_origin = _read_all(path.parent / base, chain)
    replaced = {key: value for key, value in values.items() if key.count(".") == 1 or not isinstance(value, dict)}
    _apply(base_tree, Layer(replaced, path.name))
    return base_tree, base_origin | origin


def _dotted(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Every dotted key of a nested mapping, and its value."""
    keys: dict[str, Any] = {}
    for name, value in tree.items() if isinstance(tree, dict) else ():
        keys |= {f"{prefix}{name}": value} | _dotted(value, f"{prefix}{name}.")
    return keys


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = yamltext.parse(yamltext.read(path, MAX_BYTES))
    except FileNotFoundError:
        if str(path) in plugins.members("datasets"):
            raise UserError(f"{path}: give a configuration; for example configs/quickstart.yaml -s data.name={path}") from None
        nearby = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        raise UserError(f"{path}: there is no such file{did_you_mean(path.name, nearby)}") from None
    except OSError as error:
        unreadable = f"cannot be read ({reason(error)}); make it readable"
        raise UserError(f"{path}: {'is a folder; give a YAML file in it' if path.is_dir() else unreadable}") from None
    except yamltext.YamlError as error:
        instead = "; the configuration of a run is config.yaml beside it" if filekinds.kind(path) == filekinds.HDF5 else ""
        raise UserError(f"{path}: is not valid YAML: {error}{instead}") from None
    if not isinstance(tree, dict):
        content = "nothing" if tree is None else f"a {type(tree).__name__}"
        raise UserError(f"{path}: must hold keys and values such as 'rounds: 10', but holds {content}")
    return _named(tree)


def _named(tree: dict[str, Any]) -> dict[str, Any]:
    """The same tree, where a section that is a name alone becomes a section with this name."""
    return {key: {"name": value} if key in BY_NAME and isinstance(value, str) else value for key, value in tree.items()}


def _split_override(text: str) -> tuple[str, Any]:
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


def _apply(tree: dict[str, Any], layer: Layer) -> list[str]:
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


def _member_options(section: str, family: str, branch: Any, valid_keys: list[str], problems: list[tuple[str, str]]) -> BaseOptions:
    """The checked options of one family member. On a mistake: a stand-in, so that the other sections are checked, too."""
    stand_in = BaseOptions(name=DEFAULT_MEMBER[section])
    if not isinstance(branch, dict):
        problems.append((section, f"{section}: must hold keys such as 'name: {stand_in.name}', not {shown(branch)}"))
        return stand_in
    if section in PARTS and "name" not in branch:
        own = "options of algorithm: ... itself are its own keys"
        problems.append((section, f"{section}: must name the algorithm whose part it is; {own}"))
        return stand_in
    branch = {"name": DEFAULT_MEMBER[section]} | branch
    if not isinstance(branch["name"], str):
        problems.append((f"{section}.name", f"{section}.name: {SENTENCES['string_type'].format(value=shown(branch['name']))}"))
        return stand_in
    try:
        options: type[BaseOptions] = plugins.member(family, branch["name"]).Options
    except UserError as error:
        problems.append((f"{section}.name", f"{section}.name: {error}"))
        return stand_in
    try:
        return options.model_validate(branch)
    except ValidationError as error:
        problems += explain(error, f"{section}.", valid_keys)
        return stand_in


def _valid_keys(tree: dict[str, Any]) -> list[str]:
    """Every valid dotted key, for suggestions. For a family: the options of the member that the tree names."""
    keys = []
    for name, field in Config.model_fields.items():
        kind = field.annotation
        if name in FAMILY_OF:
            branch = tree.get(name)
            member = str(branch.get("name", "")) if isinstance(branch, dict) else ""
            names = plugins.members(FAMILY_OF[name])
            kind = plugins.member(FAMILY_OF[name], member if member in names else DEFAULT_MEMBER[name]).Options
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += [f"{name}.{sub}" for sub in kind.model_fields]
        keys.append(name)
    return keys
