"""Read a file of weights. Its first bytes decide its format, whatever its suffix; pickled code is never run."""

import json
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from flora_hpc import filekinds
from flora_hpc.errors import UserError, reason

WRAPPERS = re.compile(r"^((module|_orig_mod|model|clip)\.)+")  # prefixes that training code puts before a CLIP's names
STATE_KEYS = ("state_dict", "model_state_dict", "model")  # keys of a training checkpoint that hold the weights
INDEX = ".index.json"  # the table of a checkpoint in several files: weight_map, tensor -> file
HEADER_LIMIT = 100_000_000  # bytes, the limit of safetensors' own readers
OLD_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"  # torch.save's pickled magic number, before it wrote zip archives
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
PICKLED = "it holds pickled code, which is never run; save its state dict alone, best as .safetensors"
AGAIN = "copy or download it again"
RESAVE = "load it with the program that wrote it, and save its state dict as .safetensors with PyTorch's names"


def read(file: Path, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint, mapped from the file where its format allows it. On device 'meta', read only headers.

    `file` may be the index of a checkpoint in several files. Raises UserError when it is no checkpoint.
    """
    if file.name.endswith(INDEX):
        return _joined({part.name: read(part, device) for part in shards(file)}, file)
    try:
        kind = _kind(file)
        if kind == "safetensors":
            named: Any = _map(file) if device == "cpu" else _shapes(file)
        else:
            named = _unpickle(file, device, mapped=kind == "zip")
    except UserError:
        raise
    except Exception as error:  # an unpickler raises any exception for damaged bytes
        if isinstance(error, OSError) and error.errno is not None:  # an error of the system; the file may be intact
            raise UserError(
                f"model.pretrained: {file} cannot be read ({reason(error)}); make it readable, or copy it again"
            ) from None
        is_code = any(word in str(error) for word in ("weights_only", "TorchScript"))
        why = PICKLED if is_code else f"{reason(error)}; {AGAIN}"
        raise UserError(f"model.pretrained: {file} does not load: {why}") from None
    tensors = {str(name): value for name, value in named.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise UserError(f"model.pretrained: {file} holds no tensors by name; save a model's state dict")
    return _unwrapped(tensors, file)


def _joined(parts: dict[str, dict[str, torch.Tensor]], index: Path) -> dict[str, torch.Tensor]:
    """Join the tensors of all files of a checkpoint. Raises UserError when two files hold a tensor of the same name."""
    tensors: dict[str, torch.Tensor] = {}
    files: dict[str, str] = {}
    for file, named in parts.items():
        if name := next((name for name in named if name in tensors), None):
            raise UserError(
                f"model.pretrained: {index}: both {files[name]} and {file} hold {name}, so which one counts is not known; "
                "copy all parts of one checkpoint into a folder of their own"
            )
        tensors |= named
        files |= dict.fromkeys(named, file)
    return tensors


def _unwrapped(tensors: dict[str, torch.Tensor], file: Path) -> dict[str, torch.Tensor]:
    """Remove the prefixes of training code from names. Raises UserError when two tensors then have the same name (two models)."""
    wrapped: dict[str, str] = {}
    for name in tensors:
        plain = WRAPPERS.sub("", name)
        if plain in wrapped:
            raise UserError(
                f"model.pretrained: {file} holds two tensors for {plain}: {wrapped[plain]} and {name}; "
                "save the state dict of one model"
            )
        wrapped[plain] = name
    return {plain: tensors[name] for plain, name in wrapped.items()}


def shards(index: Path) -> list[Path]:
    """The files that an index names. Raises UserError when one is missing."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        parts = [index.parent / Path(name).name for name in names]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"model.pretrained: {index} has no readable weight_map, which names the weights files; {AGAIN}") from None
    if indices := [part.name for part in parts if part.name.endswith(INDEX)]:
        raise UserError(f"model.pretrained: {index} names {indices[0]}, which is an index and no weights file; {AGAIN}")
    if absent := [part.name for part in parts if not part.is_file()]:
        listed = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
        raise UserError(
            f"model.pretrained: {index.parent} lacks {listed}, which {index.name} names; copy all parts into one folder"
        )
    return parts


def _kind(file: Path) -> str:
    """'safetensors', 'zip' or 'old', from a file's first bytes. Raises UserError, with the cure, for every other kind."""
    with file.open("rb") as opened:
        head = opened.read(filekinds.HEAD_BYTES)
    size = file.stat().st_size
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length <= HEADER_LIMIT:
        _check_safetensors(file, length, size)
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        _check_zip(file)
        return "zip"
    if head.startswith(OLD_TORCH):
        return "old"
    raise UserError(f"model.pretrained: {file} does not load: it is {_describe(head, size)}")


def _check_safetensors(file: Path, length: int, size: int) -> None:
    """Raise UserError for a safetensors file whose header is damaged or whose end is missing; `length` is that of its header."""
    expected = 8 + length
    if expected <= size:
        with file.open("rb") as opened:
            text = opened.read(expected)[8:]
        try:
            entries = [entry for name, entry in json.loads(text).items() if name != "__metadata__"]
            expected += max((int(entry["data_offsets"][1]) for entry in entries), default=0)
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
            raise UserError(f"model.pretrained: {file} does not load: its safetensors header is damaged; {AGAIN}") from None
    if size < expected:
        raise UserError(
            f"model.pretrained: {file} does not load: it is a safetensors file of {expected:,} bytes or more, of which only "
            f"{size:,} are there; {AGAIN}"
        )


def _check_zip(file: Path) -> None:
    """Raise UserError for a zip archive that torch.save did not write, or whose end is missing."""
    if not zipfile.is_zipfile(file):
        raise UserError(f"model.pretrained: {file} does not load: it is a zip archive whose end is missing; {AGAIN}")
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
    if any(name.endswith("constants.pkl") for name in names):
        raise UserError(f"model.pretrained: {file} does not load: it is a TorchScript program: {PICKLED}")
    if not any(Path(name).name == "data.pkl" for name in names):
        what = "a NumPy archive" if any(name.endswith(".npy") for name in names) else f"a zip archive of {', '.join(names[:3])}"
        raise UserError(f"model.pretrained: {file} does not load: it is {what}, which torch.save did not write; {RESAVE}")


def _describe(head: bytes, size: int) -> str:
    """Describe a file that is no checkpoint, with the cure."""
    if not size:
        return f"empty; {AGAIN}"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return f"a pickle that torch.save did not write: {PICKLED}"
    if kind := filekinds.kind_of(head):
        real = re.search(rb"^size (\d+)$", head, re.MULTILINE) if kind == filekinds.POINTER else None
        extent = f" ({size:,} bytes, where the weights have {int(real[1]):,})" if real else ""
        return f"{kind.name}{extent}; {kind.cure or RESAVE}"
    if re.match(rb"\s*[\[{]", head) and b'"' in head:
        return "JSON text, not weights; give the weights file, or the folder that holds both"
    text = head[:40].decode("utf-8", "replace")
    if "\ufffd" not in text and "\0" not in text:
        return f"text that begins with {text[:20]!r}; give a weights file (.safetensors, or a state dict of torch.save)"
    return f"of an unknown kind (it begins with the bytes {head[:8].hex(' ')}); give .safetensors, or a state dict of torch.save"


def _unpickle(file: Path, device: str, mapped: bool) -> dict[Any, Any]:
    """Read the state dict in a file of torch.save. The old format has no header, so the whole file is read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of a pickle that it then refuses
        if file.suffix == ".safetensors":  # torch trusts this suffix; an open file has none, but cannot be mapped
            with file.open("rb") as opened:
                checkpoint = torch.load(opened, map_location="cpu", weights_only=True)
        else:
            checkpoint = torch.load(file, map_location=device if mapped else "cpu", weights_only=True, mmap=mapped)
    state = checkpoint if isinstance(checkpoint, dict) else {}
    state = next((state[name] for name in STATE_KEYS if isinstance(state.get(name), dict)), state)
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in state.items()}


def _map(file: Path) -> dict[str, torch.Tensor]:
    """Map the tensors of a safetensors file, in one mapping for each tower.

    A mapping lasts as long as any of its tensors. So a run that drops the image tower releases all pages of that tower.
    """
    tensors: dict[str, torch.Tensor] = {}
    for visual in (True, False):
        with safe_open(file, "pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys() if name.startswith("vis") == visual}  # noqa: SIM118
    return tensors


def _shapes(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file without their values, on device 'meta'."""
    tensors: dict[str, torch.Tensor] = {}
    with safe_open(file, "pt") as opened:
        for name in opened.keys():  # noqa: SIM118
            part = opened.get_slice(name)
            tensors[name] = torch.empty(part.get_shape(), dtype=DTYPES.get(part.get_dtype(), torch.uint8), device="meta")
    return tensors
