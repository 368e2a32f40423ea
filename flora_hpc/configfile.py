"""Read a configuration from YAML and `-s key=value`, and report all its mistakes at once."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from flora_hpc import bundled, plugins
from flora_hpc.config import OPTIONAL, PARTS, CommConfig, Config
from flora_hpc.configerrors import SENTENCES, explain, shown
from flora_hpc.configtree import DEFAULT_MEMBER, FAMILY_OF, Layer, apply, copied, dotted, named, read_all, split_override
from flora_hpc.errors import UserError
from flora_hpc.plugins import BaseOptions
from flora_hpc.userparts import Part


def load(path: Path, overrides: list[str] | None = None) -> tuple[Config, list[str]]:
    """Read a YAML file on top of its `base` file, and apply `key.sub=value` overrides.

        base file  <-  file  <-  -s key=value        later values replace earlier values

    Returns the configuration and notes on keys that the overrides remove. Raises UserError with one line per mistake.
    """
    tree, origin = read_all(path)
    return check(tree, origin, Layer(dict(split_override(text) for text in overrides or [])), path.name)


def load_values(source: Path | Mapping[str, Any], given: Mapping[str, Any]) -> tuple[Config, list[str]]:
    """Like `load`, from a file or a nested mapping; `given` has Python values by dotted key."""
    tree, origin = read_all(source) if isinstance(source, Path) else (named(copied(source)), {})
    return check(tree, origin, Layer(given, "override"), source.name if isinstance(source, Path) else "config")


def check(tree: dict[str, Any], origin: dict[str, str], layer: Layer, file: str) -> tuple[Config, list[str]]:
    """The configuration from `tree` with `layer` on top. `origin` has the file of each key; other keys come from `file`."""
    notes = []
    if "aggregator" in tree and "algorithm" not in tree:  # configurations and runs of earlier versions
        tree["algorithm"] = tree.pop("aggregator")
        notes.append("aggregator: is called algorithm now, and was read as such")
    if tree.pop("study", None) is not None:
        notes.append("study: is a grid for `flora-hpc study`; here the configuration is read without it")
    notes += apply(tree, layer)
    valid_keys = all_keys(tree)
    problems: list[tuple[str, str]] = []
    if tree.pop("aggregator", None) is not None:
        problems.append(("aggregator", "aggregator: is called algorithm now; give that alone"))
    members = {name: branch.get("name", DEFAULT_MEMBER[name]) for name in FAMILY_OF if isinstance(branch := tree.get(name), dict)}
    for section, family in FAMILY_OF.items():
        if section not in OPTIONAL or tree.get(section) is not None:
            tree[section] = _member_options(section, family, tree.get(section, {}), valid_keys, problems)
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        problems += explain(error, "", valid_keys)
    problems = [(key, _of_other_members(key, text, members)) for key, text in problems]
    if problems:
        raise UserError("\n".join(f"{_source(key, layer, origin) or f'{file}:'} {text}" for key, text in problems))
    if config.model.pretrained == "none":
        notes.append("model.pretrained is 'none': RANDOM weights, good for measuring speed; accuracies mean nothing")
    return config, notes


def _of_other_members(key: str, text: str, members: Mapping[str, Any]) -> str:
    """The sentence about a key; for an unknown option of a family's member, the members that have it."""
    section, _, option = key.partition(".")
    if section not in members or "unknown key" not in text:
        return text
    family = FAMILY_OF[section]
    others = [other for other in plugins.members(family) if option in plugins.member(family, other).Options.model_fields]
    if not others:
        return text
    _, hint, similar = text.partition("; did you mean ")
    return f"{key}: is no option of {members[section]}, but of {', '.join(others)}{hint}{similar}"


def load_comm(path: Path, overrides: list[str] | None = None) -> CommConfig:
    """The section `comm` alone, also of a configuration with mistakes; the defaults where it cannot be read."""
    return _comm(lambda: read_all(path)[0], lambda: dict(split_override(text) for text in overrides or []))


def load_comm_values(source: Path | Mapping[str, Any], values: Mapping[str, Any]) -> CommConfig:
    """The same from a file or a nested mapping, with overrides as Python values by dotted key."""
    return _comm(lambda: read_all(source)[0] if isinstance(source, Path) else named(copied(source)), lambda: values)


def _comm(read: Callable[[], dict[str, Any]], overrides: Callable[[], Mapping[str, Any]]) -> CommConfig:
    try:
        tree = read()
    except UserError:
        tree = {}
    try:
        apply(tree, Layer(overrides()))
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
    """The section `data` alone, from a configuration or from a dataset's name, which goes first. Raises UserError like `load`."""
    is_bundled = what in bundled.names() and what not in plugins.members("datasets")
    is_file = what.endswith((".yaml", ".yml")) or is_bundled
    tree: dict[str, Any] = read_all(Path(what))[0] if is_file else {"data": {"name": what}}
    override_values = dict(split_override(text) for text in overrides or [])
    if foreign := [key for key in override_values if key.partition(".")[0] != "data"]:
        raise UserError(f"-s {foreign[0]}: has nothing to do with the data; give keys such as data.root")
    apply(tree, Layer(override_values))
    problems: list[tuple[str, str]] = []
    valid_keys = [key for key in all_keys(tree) if key.startswith("data.")]
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
    left, right = (dotted(config.model_dump(mode="json")) for config in (one, other))
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


def _member_options(section: str, family: str, branch: Any, valid_keys: list[str], problems: list[tuple[str, str]]) -> BaseOptions:
    """The checked options of one family member. On a mistake: a stand-in, so that the other sections are checked, too."""
    stand_in = BaseOptions(name=DEFAULT_MEMBER[section])
    if not isinstance(branch, dict):
        problems.append((section, f"{section}: must hold keys such as 'name: {stand_in.name}', not {shown(branch)}"))
        return stand_in
    if section in OPTIONAL and "name" not in branch:
        own = "must name the algorithm whose part it is; options of algorithm: ... itself are its own keys"
        attack = f"must name the attack, one of {', '.join(plugins.members(family))}"
        problems.append((section, f"{section}: {own if section in PARTS else attack}"))
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
        problems += explain(error, f"{section}.", valid_keys, options)
        return stand_in


def all_keys(tree: dict[str, Any]) -> list[str]:
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
