"""Read YAML by the core schema of YAML 1.2, and write YAML that readers of YAML 1.1 understand in the same way.

    text      YAML 1.1 (PyYAML)    core schema of YAML 1.2
    no        false                the text 'no'
    1:30      90                   the text '1:30'
    010       8                    10

PyYAML stays the parser, with other rules for plain scalars. ruamel.yaml would be one more dependency. It reads `1_000` as a number,
a date as a date, and the key `00000` as 0.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from flora_hpc import filekinds

MAX_BYTES = 2**24  # PyYAML reads some 100 kB a second
MAX_DEPTH = 40
MAX_NODES = 200_000  # every alias counted as the nodes that it stands for
CURES = {  # part of PyYAML's message -> the cure
    "'\\t'": " (indent with spaces, not with tabs)",
    "could not find expected ':'": " (a key needs a colon and a blank after it, as in 'rounds: 20')",
    "mapping values are not allowed here": " (a key needs a colon and a blank after it; put a text with ': ' in quotes)",
    "but found another document": " (give one document, without a second ---)",
}
QUOTED = ("[", "{", "'", '"')  # first characters of values that are not one plain scalar
WORD = re.compile(r"[A-Za-z_][\w./+-]*", re.ASCII)  # a text that needs no quotes anywhere
TEXT = "tag:yaml.org,2002:str"
MAX_DIGITS = 400  # the longest decimal number of a float64 has 309 digits before its point
CORE = {  # tag: pattern of its plain scalars, and their first characters
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}
PATTERNS = {f"tag:yaml.org,2002:{name}": (re.compile(f"(?:{pattern})\\Z"), first) for name, (pattern, first) in CORE.items()}


class YamlError(ValueError):
    """One sentence: the mistake in a YAML text, and its line."""


def parse(text: str) -> Any:
    """The value of a YAML document; keys are texts as they are written. Raises YamlError."""
    return _load(text, _Core)


def parse_texts(text: str) -> Any:
    """The value of a YAML document in which every scalar is a text: `00000: no` gives {'00000': 'no'}. Raises YamlError."""
    return _load(text, _Texts)


def scalar(text: str) -> Any:
    """The value of `text` as one plain scalar: '010' gives 10, 'a: b # c' gives 'a: b # c'. Raises YamlError."""
    return _load_node(ScalarNode(_tag(text), text))


def value(text: str) -> Any:
    """The value of `text` as `-s key=text` reads it: a list, a mapping or a text in quotes as in YAML, else one plain scalar.

    Raises YamlError.
    """
    try:
        return parse(text) if text[:1] in QUOTED else scalar(text)
    except YamlError:
        if text[:1] not in QUOTED:
            raise
        return text  # such as the caption "{}, a type of pet"


def inline(tree: Any) -> str:
    """A value on one line, from which `value` reads it again: [a, 1], null, 'flora', "1"."""
    if isinstance(tree, Mapping):
        return "{" + ", ".join(f"{_plain(str(key))}: {_inner(part)}" for key, part in tree.items()) + "}"
    if isinstance(tree, list | tuple):
        return "[" + ", ".join(_inner(part) for part in tree) + "]"
    if isinstance(tree, str):
        is_plain = tree.isprintable() and tree == tree.strip() != "" and tree[0] not in QUOTED and _tag(tree) == TEXT
        return tree if is_plain else _quoted(tree)
    return {None: "null", True: "true", False: "false"}[tree] if tree is None or isinstance(tree, bool) else _number(tree)


def _inner(part: Any) -> str:
    """A value within brackets, where a text has to be in quotes unless it is a word."""
    return _plain(part) if isinstance(part, str) else inline(part)


def _plain(text: str) -> str:
    return text if WORD.fullmatch(text) and _tag(text) == TEXT else _quoted(text)


def _quoted(text: str) -> str:
    """A text in double quotes; JSON's pairs of surrogates are no YAML."""
    letters = json.dumps(text, ensure_ascii=False)
    return "".join(letter if letter.isprintable() else f"\\U{ord(letter):08x}" for letter in letters)


def _number(number: float) -> str:
    text = repr(number)
    return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(text, text)


def dump(tree: Any) -> str:
    """The YAML text of nested dictionaries and lists; readers of YAML 1.1 and of YAML 1.2 read the same values from it."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120)


def read(path: Path, max_bytes: int = MAX_BYTES) -> str:
    """The text of a file, in UTF-8, or in UTF-16 with a byte order mark.

    Raises OSError, and YamlError for other bytes and for a file larger than `max_bytes`.
    """
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    if encoding != "utf-16" and (kind := filekinds.kind_of(data[: filekinds.HEAD_BYTES])):
        raise YamlError(f"the file is {kind}")
    if len(data) > max_bytes:
        raise YamlError(f"the file is larger than {max_bytes >> 20} MiB")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        place = "the file" if encoding == "utf-16" else f"line {line}"
        raise YamlError(f"{place} is not {encoding.removesuffix('-sig').upper()}; {filekinds.RESAVE_TEXT}") from None


class _Core(yaml.SafeLoader):
    """PyYAML's loader with only the tags of the core schema. It refuses repeated keys, and reads keys as texts."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:  # noqa: N803 -- PyYAML's name
        if len(self.possible_simple_keys) > MAX_DEPTH:  # open brackets; PyYAML's time grows with the square of their number
            raise yaml.scanner.ScannerError(None, None, "values are nested too deeply", self.get_mark())
        super().fetch_flow_collection_start(TokenClass)

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A dictionary. Entries of `<<` come first, so that the mapping's other entries replace them."""
        if not isinstance(node, MappingNode):
            raise _error(f"expected a mapping, but found a {node.id}", node)
        names: set[str] = set()
        for key, _ in node.value:
            if _key(key) in names:
                raise _error(f"key {_short(key.value)} stands twice", key)
            names.add(key.value)
        self.flatten_mapping(node)
        return {_key(key): self.construct_object(value, deep=True) for key, value in node.value}

    def construct_core(self, node: Any) -> Any:
        """The value of a scalar with a tag of the core schema."""
        name, text = node.tag.rpartition(":")[2], str(self.construct_scalar(node))
        pattern, _ = PATTERNS[node.tag]
        if not pattern.match(text):
            raise _error(f"{_short(text)} is no {name}", node)
        if name in ("int", "float") and len(text) > MAX_DIGITS:
            raise _error(f"a number has {len(text)} digits", node)
        if name == "int":
            return int(text[2:], {"0x": 16, "0o": 8}[text[:2]]) if text[:2] in ("0x", "0o") else int(text)
        if name == "float":
            return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
        return text.lower() == "true" if name == "bool" else None

    def construct_list(self, node: Any) -> list[Any]:
        return self.construct_sequence(node, deep=True)

    def construct_unknown(self, node: Any) -> Any:
        raise _error(f"the tag {node.tag.replace('tag:yaml.org,2002:', '!!')} has no meaning here; leave it out", node)


class _Texts(_Core):
    """The same loader, but every plain scalar is a text."""


_Core.yaml_implicit_resolvers, _Texts.yaml_implicit_resolvers = {}, {}
_Core.yaml_constructors = _Texts.yaml_constructors = {
    **dict.fromkeys(PATTERNS, _Core.construct_core),
    "tag:yaml.org,2002:str": _Core.construct_scalar,
    "tag:yaml.org,2002:seq": _Core.construct_list,
    "tag:yaml.org,2002:map": _Core.construct_mapping,
    None: _Core.construct_unknown,
}


class _Dumper(yaml.SafeDumper):
    """PyYAML's dumper, which quotes texts that YAML 1.1 would read as other values; this one also quotes for YAML 1.2."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write repeated parts in full: an anchor is hard to read."""
        return True


for _tag_name, (_pattern, _first) in PATTERNS.items():
    _Core.add_implicit_resolver(_tag_name, _pattern, _first)
    _Dumper.add_implicit_resolver(_tag_name, _pattern, _first)


def _load(text: str, kind: type[_Core]) -> Any:
    try:
        loader = kind(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, {})
        return loader.construct_document(node)
    except RecursionError:
        raise YamlError("values are nested too deeply") from None
    except yaml.YAMLError as error:
        raise YamlError(_sentence(error)) from None


def _load_node(node: Node) -> Any:
    try:
        return _Core("").construct_document(node)
    except yaml.YAMLError as error:
        raise YamlError(_sentence(error)) from None


def _key(node: Node) -> str:
    if not isinstance(node, ScalarNode):
        raise _error("a key must be a text, not a list or a mapping", node)
    if node.value == "":
        raise _error("a key is missing before ':'", node)
    return str(node.value)


def _tag(text: str) -> str:
    return next((tag for tag, (pattern, _) in PATTERNS.items() if pattern.match(text)), TEXT)


def _measure(node: Node, sizes: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Number of nodes below `node`, with aliases expanded, and their depth. Raises an error when these are too large."""
    if id(node) not in sizes:
        sizes[id(node)] = (0, 0)  # until its parts are counted: finding 0 again means a cycle
        parts: list[Node] = []
        if isinstance(node, SequenceNode):
            parts = node.value
        elif isinstance(node, MappingNode):
            parts = [part for entry in node.value for part in entry]
        measured = [_measure(part, sizes) for part in parts]
        sizes[id(node)] = (1 + sum(size for size, _ in measured), 1 + max((depth for _, depth in measured), default=0))
    size, depth = sizes[id(node)]
    if size == 0:
        raise _error("an alias stands for a part that contains it", node)
    if depth > MAX_DEPTH:
        raise _error("values are nested too deeply", node)
    if size > MAX_NODES:
        raise _error("there are too many values", node)
    return size, depth


def _error(problem: str, node: Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _sentence(error: yaml.YAMLError) -> str:
    """PyYAML's error in one line, without its copy of the text: 'line 2: expected ...'."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    if problem is None:
        return " ".join(str(error).split())
    problem += next((cure for sign, cure in CURES.items() if sign in problem), "")
    context, begin = getattr(error, "context", None), getattr(error, "context_mark", None)
    where = f"line {mark.line + 1}: " if mark else ""
    since = f", {context}{f' that begins in line {begin.line + 1}' if begin else ''}" if context else ""
    return f"{where}{problem}{since}"


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
