"""YAML by the core schema of YAML 1.2, without values that only YAML 1.1 or Python has."""

import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from flora_hpc import yamltext
from flora_hpc.yamltext import YamlError

# What YAML 1.2 section 10.3.2 says of each; the second column of lines is what YAML 1.1 made of them.
SCALARS = {
    "008": 8,
    "010": 10,  # 8
    "+0012": 12,
    "-007": -7,
    "0o17": 15,
    "0x1F": 31,
    "1e3": 1000.0,  # a text
    "5e-5": 5e-5,  # a text
    "1.": 1.0,
    ".5": 0.5,
    "-.inf": float("-inf"),
    "true": True,
    "FALSE": False,
    "~": None,
    "Null": None,
    "": None,
    "no": "no",  # False
    "On": "On",  # True
    "y": "y",
    "1_000": "1_000",  # 1000
    "0b11": "0b11",  # 3
    "1:30": "1:30",  # 90
    "2024-02-30": "2024-02-30",  # a mistake
    "2024-01-01 10:00:00": "2024-01-01 10:00:00",  # a datetime
    "=": "=",
    "tRUE": "tRUE",
    "nan": "nan",
    "infinity": "infinity",
    "0x": "0x",
    "08.5": 8.5,
    "\u0663": "\u0663",  # a digit, but not of ASCII
}


@pytest.mark.parametrize(("text", "value"), SCALARS.items())
def test_a_plain_scalar_has_the_value_of_the_core_schema(text: str, value: object) -> None:
    for read in (yamltext.parse(f"a: {text}")["a"], yamltext.scalar(text)):
        assert (type(read), read) == (type(value), value)


@pytest.mark.parametrize("text", ["no", "010", "true", "", "~", "1e3"])
def test_what_stands_in_quotes_is_a_text(text: str) -> None:
    assert yamltext.parse(f"['{text}', \"{text}\", !!str '{text}']") == [text] * 3


def test_keys_are_texts_as_they_are_written() -> None:
    assert yamltext.parse("no: 1\n00000: 2\n1e3: 3\n~: 4\n0o7: 5\n2024-01-01: 6") == {
        "no": 1,
        "00000": 2,
        "1e3": 3,
        "~": 4,
        "0o7": 5,
        "2024-01-01": 6,
    }


def test_names_are_texts_whatever_they_look_like() -> None:
    assert yamltext.parse_texts("no: 010\n00000: [yes, ~, 1.50]\n1: null") == {
        "no": "010",
        "00000": ["yes", "~", "1.50"],
        "1": "null",
    }


def test_anchors_and_merges_hold() -> None:
    text = "base: &base {lr: 1e-3, epochs: 2}\nclient: {<<: *base, epochs: 3}\nmore: {<<: [{a: 1}, {a: 2, b: 2}]}"
    read = yamltext.parse(text)
    assert read["client"] == {"lr": 1e-3, "epochs": 3}
    assert read["more"] == {"a": 1, "b": 2}


NESTED = "[" * 60 + "]" * 60
BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{','.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 12))
LADDER = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 60))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: key 'a' stands twice"),
        ("1: x\n'1': y", "line 2: key '1' stands twice"),
        ("a: {<<: {b: 1}, <<: {c: 1}}", "line 1: key '<<' stands twice"),
        ("[a, b]: 1", "line 1: a key must be a text, not a list or a mapping"),
        ("a: {<<: {[a]: 1}}", "line 1: a key must be a text"),
        ("'': 1", "line 1: a key is missing before ':'"),
        ("a:\n\t- b", r"line 2: found character '\t' that cannot start any token (indent with spaces, not with tabs)"),
        ("a: 1\n---\na: 2", "line 2: but found another document (give one document, without a second ---)"),
        ("a:1\nb: 2", "line 2: mapping values are not allowed here (a key needs a colon and a blank after it; "),
        ("b: 2\na:1\n", "could not find expected ':' (a key needs a colon and a blank after it, as in 'rounds: 20')"),
        (
            "a: !!python/object/apply:os.system [ls]",
            "line 1: the tag !!python/object/apply:os.system has no meaning here; leave it out",
        ),
        ("a: !Ref b", "the tag !Ref has no meaning here"),
        ("a: !!set {b}", "the tag !!set has no meaning here"),
        ("a: !!timestamp 2024", "the tag !!timestamp has no meaning here"),
        ("a: !!int no", "line 1: 'no' is no int"),
        ("a: !!bool maybe", "line 1: 'maybe' is no bool"),
        ("a: !!float [1]", "line 1: expected a scalar node, but found sequence"),
        ("a: !!map [1]", "line 1: expected a mapping, but found a sequence"),
        ("a: &a [*a]", "line 1: an alias stands for a part that contains it"),
        ("a: &a {<<: *a}", "line 1: an alias stands for a part that contains it"),
        ("a: *b", "line 1: found undefined alias 'b'"),
        (NESTED, "values are nested too deeply"),
        ("[" * 100_000, "values are nested too deeply"),
        (LADDER, "values are nested too deeply"),
        (BOMB, "there are too many values"),
        (MERGES, "there are too many values"),
        (f"a: {'9' * 5000}", "line 1: a number has 5000 digits"),
        (f"a: 0x{'f' * 5000}", "line 1: a number has 5002 digits"),
        ("a: [1, 2", "line 1: expected ',' or ']', but got '<stream end>', while parsing a flow sequence that begins in line 1"),
        ("a: \x00", "special characters are not allowed"),
        ("%YAML 3.0\n---\na: 1", "found incompatible YAML document (version 1.* is required)"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(text: str, sentence: str) -> None:
    started = time.perf_counter()
    with pytest.raises(YamlError) as error:
        yamltext.parse(text)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert time.perf_counter() - started < 5


TREES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=60)
@given(TREES)
def test_what_is_written_is_read_as_it_was(tree: object) -> None:
    text = yamltext.dump(tree)
    assert text.isascii()
    assert yamltext.parse(text) == tree


@settings(max_examples=200)
@given(TREES)
def test_what_is_written_on_one_line_is_read_as_it_was(tree: object) -> None:
    text = yamltext.inline(tree)
    assert text.isprintable()
    assert text.strip() == text != ""
    assert yamltext.value(text) == tree
    assert type(yamltext.value(text)) is type(tree)


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        (["image.out_proj", "text.q"], "[image.out_proj, text.q]"),
        (["a, b", None, True, 1e-5], '["a, b", null, true, 1e-05]'),
        ("a photo of a {}, a type of pet", "a photo of a {}, a type of pet"),
        ("{}, a pet", '"{}, a pet"'),
        ("10", '"10"'),
        ("null", '"null"'),
        ("", '""'),
        (float("inf"), ".inf"),
        ({"name": "flora", "rank": 4}, "{name: flora, rank: 4}"),
    ],
)
def test_one_line_reads_like_an_override(tree: object, text: str) -> None:
    assert yamltext.inline(tree) == text


@pytest.mark.parametrize(
    "word", [*SCALARS, "null", "0123", "off", "1e5", "0o8", "<<", "a: b", "- a", "# x", " x ", "x\ny", "é", "\u2028", "😀"]
)
def test_texts_keep_their_kind_for_readers_of_both_versions(word: str) -> None:
    text = yamltext.dump({"value": word, word or "x": 1})
    for read in (yamltext.parse(text), yaml.safe_load(text)):
        assert read == {"value": word, word or "x": 1}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_may_be_of_windows(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes("rounds: 3\r\nname: Gänse\r\n".encode(encoding))
    assert yamltext.parse(yamltext.read(tmp_path / "a.yaml")) == {"rounds": 3, "name": "Gänse"}


def test_no_more_is_read_than_a_file_may_have(tmp_path: Path) -> None:
    with pytest.raises(YamlError, match="the file is zeros at its beginning"):
        yamltext.read(Path("/dev/zero"), 2**20)
    (tmp_path / "a.yaml").write_text("#" * (2**20 + 1))
    with pytest.raises(YamlError, match="the file is larger than 1 MiB"):
        yamltext.read(tmp_path / "a.yaml", 2**20)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("rounds: 3\nname: Gänse\n".encode("latin-1"), "line 2 is not UTF-8; save it in UTF-8"),
        (b"\xff\xfea\x00:", "the file is not UTF-16; save it in UTF-8"),
        (b"<!DOCTYPE html>\n", "the file is a web page or XML, perhaps a server's message of an error; download the file itself"),
        (b"a: 1\n".ljust(257, b"\0") + b"ustar", "the file is a tar archive; unpack it"),
    ],
)
def test_a_file_that_is_no_text_is_told(data: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(data)
    with pytest.raises(YamlError) as error:
        yamltext.read(tmp_path / "a.yaml")
    assert str(error.value) == sentence
