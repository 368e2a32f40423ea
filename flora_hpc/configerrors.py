"""Explain the mistakes of a configuration: for each the key, the valid values, and the nearest valid key."""

from typing import Any

from pydantic import BaseModel, ValidationError

from flora_hpc.errors import did_you_mean

MAX_PROBLEMS = 30  # printed for one section
NEAR = 0.75  # similarity of a name to that of another section, 0..1: far names of other sections only mislead
SYNONYMS = {  # names that other programs use -> ours
    "learning_rate": "lr",
    "local_epochs": "epochs",
    "num_epochs": "epochs",
    "num_rounds": "rounds",
    "global_rounds": "rounds",
    "clients_per_round": "size",
    "participation": "fraction",
    "random_seed": "seed",
}


def explain(
    error: ValidationError, prefix: str, valid_keys: list[str], options: type[BaseModel] | None = None
) -> list[tuple[str, str]]:
    """(key, sentence) for each mistake that pydantic reports below `prefix`, with examples of `options`."""
    sentences = []
    places = [problem["loc"] for problem in error.errors()]
    for problem in error.errors()[:MAX_PROBLEMS]:
        place = problem["loc"]
        if problem["type"] == "too_short" and any(other[: len(place)] == place and other != place for other in places):
            continue  # too short only because one of its items was refused
        key = prefix + ".".join(str(part) for part in place)
        context, value = problem.get("ctx", {}), problem["input"]
        if problem["type"] == "extra_forbidden":
            sentences.append((key, f"{key}: unknown key{suggest(key, valid_keys)}"))
        elif problem["type"] == "value_error":
            text = str(context["error"])
            sentences.append((key, f"{key}: {text}") if place else (text.partition(":")[0], text))
        elif problem["type"] == "missing" and options is not None and (example := examples(options).get(str(place[0]))):
            sentences.append((key, f"{key}: is required; give for example -s {key}={example}"))
        else:
            sentence = SENTENCES.get(problem["type"], "")
            sentences.append((key, f"{key}: {sentence.format(**context, value=shown(value)) if sentence else problem['msg']}"))
    return sentences


def examples(options: type[BaseModel]) -> dict[str, str]:
    """An example of the value of each required option that has one."""
    fields = options.model_fields.items()
    return {name: str(field.examples[0]) for name, field in fields if field.is_required() and field.examples}


def shown(value: Any) -> str:
    """A value as YAML writes it, shortened for a sentence."""
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


def suggest(key: str, valid_keys: list[str]) -> str:
    """`; did you mean a.b?`: another program's name, the same name elsewhere, or a near one, of this section first."""
    section, _, last = key.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in valid_keys if name.rpartition(".")[0] == section}
    anywhere = {name.rpartition(".")[2]: name for name in valid_keys}
    if key in valid_keys:  # written with a dot in the file
        return f"; write it as {key.partition('.')[0]}: {{{key.partition('.')[2]}: ...}}"
    if ":" in last:
        return "; write a blank after the colon"
    if last in anywhere:
        return f"; did you mean {anywhere[last]}?"
    for names in (siblings, anywhere):
        if (synonym := SYNONYMS.get(last)) in names:
            return f"; did you mean {names[synonym]}?"
    for names, least in ((siblings, 0.5), (anywhere, NEAR if siblings else 0.5)):
        if hint := did_you_mean(last, names, least):
            return f"; did you mean {names[hint.split(chr(39))[1]]}?"
    return f" (known here: {', '.join(sorted(siblings))})" if siblings else ""
