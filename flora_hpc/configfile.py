"""Read a configuration from YAML and `-s key=value`; every mistake in it is reported at once."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from flora_hpc import filekinds, plugins, yamltext
from flora_hpc.config import CommConfig, Config
from flora_hpc.errors import UserError, did_you_mean, reason
from flora_hpc.plugins import BaseOptions

FAMILY_OF = {"method": "methods", "data": "datasets", "partition": "partitioners", "aggregator": "aggregators"}
DEFAULT_MEMBER = {"method": "flora", "data": "digits", "partition": "iid", "aggregator": "fedavg"}
MAX_BYTES = 2**20  # a larger file is no configuration
MAX_PROBLEMS = 30  # that are told of one section
INSTEAD_OF = {"cohort.size": "cohort.fraction", "cohort.fraction": "cohort.size"}


def load(path: Path, overrides: list[str] | None = None) -> tuple[Config, list[str]]:
    """Read a YAML file, on top of the one that its key `base` names, and apply `key.sub=value` overrides.

    Returns the configuration and notes on what the overrides set aside. Raises UserError with one line per mistake.
    """
    tree, origin = _read_all(path)
    given = dict(_split_override(text) for text in overrides or [])
    notes = _apply(tree, given)
    known = _known_keys(tree)
    problems: list[tuple[str, str]] = []
    for section, family in FAMILY_OF.items():
        tree[section] = _member_options(section, family, tree.get(section, {}), known, problems)
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        problems += _explain(error, "", known)
    if problems:
        raise UserError("\n".join(f"{_source(key, given, origin) or f'{path.name}:'} {text}" for key, text in problems))
    if config.model.pretrained == "none":
        notes.append("model.pretrained is 'none': RANDOM weights, good for measuring speed; accuracies mean nothing")
    return config, notes


def load_comm(path: Path, overrides: list[str] | None = None) -> CommConfig:
    """The section `comm` alone, as far as it can be made out of a configuration that has mistakes; the defaults otherwise."""
    try:
        tree, _ = _read_all(path)
    except UserError:
        tree = {}
    try:
        _apply(tree, dict(_split_override(text) for text in overrides or []))
        return CommConfig.model_validate(tree.get("comm", {}))
    except (UserError, ValidationError):
        return CommConfig()


def comm_with(backend: str) -> CommConfig:
    """The section `comm` with a backend from the command line. Raises UserError for one that does not exist."""
    try:
        return CommConfig(backend=backend)
    except ValidationError as error:
        raise UserError(f"--backend: {_explain(error, '', [])[0][1].removeprefix('backend: ')}") from None


def load_data(what: str, overrides: list[str] | None = None) -> BaseOptions:
    """The section `data` alone, of a YAML file, or of a dataset's name and nothing else. Raises UserError like `load`."""
    tree: dict[str, Any] = _read_all(Path(what))[0] if what.endswith((".yaml", ".yml")) else {"data": {"name": what}}
    given = dict(_split_override(text) for text in overrides or [])
    if foreign := [key for key in given if key.partition(".")[0] != "data"]:
        raise UserError(f"-s {foreign[0]}: has nothing to do with the data; give keys such as data.root")
    _apply(tree, given)
    problems: list[tuple[str, str]] = []
    known = [key for key in _known_keys(tree) if key.startswith("data.")]
    options = _member_options("data", "datasets", tree.get("data", {}), known, problems)
    if problems:
        raise UserError("\n".join(text for _, text in problems))
    return options


def differences(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, and both values."""
    left, right = (_dotted(config.model_dump(mode="json")) for config in (one, other))
    keys = [key for key in left | right if not isinstance(left.get(key), dict) and not isinstance(right.get(key), dict)]
    return {key: (left.get(key), right.get(key)) for key in keys if left.get(key) != right.get(key)}


def _source(key: str, given: dict[str, Any], origin: dict[str, str]) -> str | None:
    """Where a mistake at `key` came from: '-s' for an override of it, of a key above it, or of one below that no file has."""
    above = any(key == name or key.startswith(f"{name}.") for name in given)
    below = any(name.startswith(f"{key}.") for name in given)
    if above or (below and key not in origin):
        return "-s"
    return f"{origin[key]}:" if key in origin else None


def _read_all(path: Path, above: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """A file on top of its `base`, whose path is relative to the file; and for each dotted key the name of its file."""
    tree = _read(path)
    base = tree.pop("base", None)
    own = _dotted(tree)
    origin = dict.fromkeys(own, path.name)
    if base is None:
        return tree, origin
    if not isinstance(base, str):
        raise UserError(f"{path.name}: base: must be the path of one YAML file, not {shown(base)}")
    chain = (*above, path.resolve())
    if (path.parent / base).resolve() in chain:
        raise UserError(f"{path.name}: base: {base} is built on this file itself; take one of the two lines out")
    below, origin_below = _read_all(path.parent / base, chain)
    _apply(below, {key: value for key, value in own.items() if key.count(".") == 1 or not isinstance(value, dict)}, path.name)
    return below, origin_below | origin


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
        found = "nothing" if tree is None else f"a {type(tree).__name__}"
        raise UserError(f"{path}: must hold keys and values such as 'rounds: 10', but holds {found}")
    return tree


def _split_override(text: str) -> tuple[str, Any]:
    """The key and the value of `-s key=value`. The value is one scalar, or a list, a mapping or a text in quotes as in YAML."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not key:
        raise UserError(f"-s {shown(text)[1:-1]}: write -s key=value, for example -s client.lr=1.0e-4")
    if not value:
        raise UserError(f"-s {key}=: has no value; write {key}=null for none")
    try:
        return key, yamltext.parse(value) if value[0] in "[{'\"" else yamltext.scalar(value)
    except yamltext.YamlError as error:
        if value[0] not in "[{'\"":
            raise UserError(f"-s {key}: {error}") from None
        return key, value  # such as the caption "{}, a type of pet"


def _apply(tree: dict[str, Any], given: dict[str, Any], where: str = "-s") -> list[str]:
    """Put dotted keys into the tree; set aside what they replace, and say so. `where` they were given, for people."""
    notes = []
    for key, value in given.items():
        section, _, rest = key.partition(".")
        instead = INSTEAD_OF.get(key)
        if instead and instead not in given and value is not None:
            branch = tree.get(section)
            if isinstance(branch, dict) and branch.pop(instead.partition(".")[2], None) is not None:
                notes.append(f"{instead} of the file is set aside, since {key} was given")
        if section in FAMILY_OF and rest == "name" and isinstance(tree.get(section), dict):
            of = str(tree[section].get("name", DEFAULT_MEMBER[section]))
            dropped = _foreign_keys(FAMILY_OF[section], tree[section], of, str(value))
            for name in dropped:
                del tree[section][name]
            if dropped:
                notes.append(f"{section}.name={value}: dropped {', '.join(dropped)}, known to '{of}' only")
    for key, value in given.items():
        *parents, last = key.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
            if not isinstance(branch, dict):
                raise UserError(f"{where} {key}: '{parent}' holds a value, not keys of its own")
        branch[last] = value
    return notes


def _foreign_keys(family: str, branch: dict[str, Any], old: str, new: str) -> list[str]:
    """Keys of a branch that its old member knows and the new one does not."""
    try:
        before, after = (plugins.member(family, name).Options.model_fields for name in (old, new))
    except UserError:
        return []  # reported when the branch is checked
    return [key for key in branch if key in before and key not in after]


def _member_options(section: str, family: str, branch: Any, known: list[str], problems: list[tuple[str, str]]) -> BaseOptions:
    """The checked options of one family member; on a mistake, a stand-in so that the other sections are checked too."""
    stand_in = BaseOptions(name=DEFAULT_MEMBER[section])
    if not isinstance(branch, dict):
        problems.append((section, f"{section}: must hold keys such as 'name: {stand_in.name}', not {shown(branch)}"))
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
        problems += _explain(error, f"{section}.", known)
        return stand_in


def _known_keys(tree: dict[str, Any]) -> list[str]:
    """Every dotted key that exists, for suggestions; of a family, those of the member that the tree chose."""
    keys = []
    for name, field in Config.model_fields.items():
        kind = field.annotation
        if name in FAMILY_OF:
            branch = tree.get(name)
            chosen = str(branch.get("name", "")) if isinstance(branch, dict) else ""
            names = plugins.members(FAMILY_OF[name])
            kind = plugins.member(FAMILY_OF[name], chosen if chosen in names else DEFAULT_MEMBER[name]).Options
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += [f"{name}.{sub}" for sub in kind.model_fields]
        keys.append(name)
    return keys


def _explain(error: ValidationError, prefix: str, known: list[str]) -> list[tuple[str, str]]:
    """(key, sentence) for each mistake that pydantic found below `prefix`."""
    found = []
    places = [problem["loc"] for problem in error.errors()]
    for problem in error.errors()[:MAX_PROBLEMS]:
        place = problem["loc"]
        if problem["type"] == "too_short" and any(other[: len(place)] == place and other != place for other in places):
            continue  # short only because an item of it was refused
        key = prefix + ".".join(str(part) for part in place)
        context, value = problem.get("ctx", {}), problem["input"]
        if problem["type"] == "extra_forbidden":
            found.append((key, f"{key}: unknown key{_suggest(key, known)}"))
        elif problem["type"] == "value_error":
            text = str(context["error"])
            found.append((key, f"{key}: {text}") if place else (text.partition(":")[0], text))
        else:
            sentence = SENTENCES.get(problem["type"], "")
            found.append((key, f"{key}: {sentence.format(**context, value=shown(value)) if sentence else problem['msg']}"))
    return found


def shown(value: Any) -> str:
    """A value as a configuration has it, short enough for a sentence."""
    text = {"True": "true", "False": "false", "None": "null"}.get(text := repr(value), text)
    return text if len(text) <= 80 else f"{text[:76]}...{text[-1]}"


SENTENCES = {
    "missing": "is required",
    "too_short": "must have at least {min_length} item",
    "too_long": "must have at most {max_length} items, not {actual_length}",
    "tuple_type": "must be a list such as [a, b], not {value}",
    "greater_than": "must be greater than {gt}, not {value}",
    "greater_than_equal": "must be at least {ge}, not {value}",
    "less_than": "must be less than {lt}, not {value}",
    "less_than_equal": "must be at most {le}, not {value}",
    "int_parsing": "must be a whole number, not {value}",
    "int_type": "must be a whole number, not {value}",
    "int_from_float": "must be a whole number, not {value}",
    "float_parsing": "must be a number, not {value}",
    "float_type": "must be a number, not {value}",
    "finite_number": "must be a finite number, not {value}",
    "bool_parsing": "must be true or false, not {value}",
    "bool_type": "must be true or false, not {value}",
    "string_type": "must be a text, not {value}; put it in quotes if it is meant",
    "string_unicode": "must be a text in UTF-8, not {value}",
    "path_type": "must be the path of a file or folder, not {value}; put it in quotes if it is meant",
    "literal_error": "must be {expected}, not {value}",
    "model_type": "must hold keys of its own, not {value}",
    "model_attributes_type": "must hold keys of its own, not {value}",
}


def _suggest(key: str, known: list[str]) -> str:
    """`; did you mean a.b?`: the same name elsewhere, else the nearest of the same section, else of any section."""
    section, _, last = key.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == section}
    anywhere = {name.rpartition(".")[2]: name for name in known}
    if key in known:  # written with a dot in the file
        return f"; write it as {key.partition('.')[0]}: {{{key.partition('.')[2]}: ...}}"
    if ":" in last:
        return "; write a blank after the colon"
    if last in anywhere:
        return f"; did you mean {anywhere[last]}?"
    for names in (siblings, anywhere):
        if hint := did_you_mean(last, names):
            return f"; did you mean {names[hint.split(chr(39))[1]]}?"
    return f" (known here: {', '.join(sorted(siblings))})" if siblings else ""
