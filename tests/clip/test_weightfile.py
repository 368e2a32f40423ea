"""First bytes say what a file is, and the answer has the cure."""

import io
import json
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

from flora_hpc.clip import weightfile
from flora_hpc.errors import UserError

STATE = {"a": torch.arange(6.0).reshape(2, 3), "visual.b": torch.ones(4, dtype=torch.bfloat16)}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 605143316\n"


def saved(value: object, **options: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def archive(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        for name in names:
            opened.writestr(name, b"x")
    return buffer.getvalue()


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as opened:
        opened.addfile(tarfile.TarInfo("weights.bin"))
    return buffer.getvalue()


def numpy_archive() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3))
    return buffer.getvalue()


WHOLE = save(STATE)
KINDS = {
    "pointer": (POINTER, "a pointer of Git LFS, not the file itself .*605,143,316.*; run git lfs pull"),
    "page": (b"\n<!DOCTYPE html><html>", "a web page or XML.*; download the file itself"),
    "redirect": (b'<?xml version="1.0"?>', "a web page"),
    "empty": (b"", "it is empty; copy or download it again"),
    "json": (b'{"error": "gated"}', "JSON text, not weights"),
    "text": (b"Entry not found", "text that begins with 'Entry not found'"),
    "noise": (bytes(range(200, 255)) * 3, "of an unknown kind .it begins with the bytes c8 c9"),
    "gguf": (b"GGUF\x03\0\0\0" + bytes(100), "a GGUF file; load it with the program that wrote it"),
    "onnx": (b"\x08\x08\x12\x07pytorch\x1a\x052.3.0", "an ONNX or Core ML model"),
    "flax": (b"\x82\xaatext_model\x81\xa1a\x01", "a msgpack file, as Flax writes weights"),
    "keras": (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file; load it with the program that wrote it"),
    "gzip": (b"\x1f\x8b\x08\0" + bytes(100), "compressed with gzip; decompress it with gunzip"),
    "tar": (tar(), "a tar archive; unpack it"),
    "numpy": (numpy_archive(), "a NumPy archive, which torch.save did not write"),
    "zip": (archive("README", "model/weights.bin"), "a zip archive of README, model/weights.bin"),
    "script": (archive("m/constants.pkl", "m/data.pkl"), "a TorchScript program: it holds pickled code, which is never run"),
    "pickle": (pickle.dumps({"a": [1.0]}), "a pickle that torch.save did not write: it holds pickled code, which is never run"),
    "zeros": (bytes(1000), "zeros at its beginning: its copy broke off; copy or download it again"),
    "header cut": (WHOLE[:60], "a safetensors file of .* bytes or more, of which only 60 are there"),
    "values cut": (WHOLE[:-3], f"a safetensors file of {len(WHOLE)} bytes or more, of which only {len(WHOLE) - 3} are there"),
    "zip cut": (saved(STATE)[:-30], "a zip archive whose end is missing; copy or download it again"),
    "old cut": (saved(STATE, _use_new_zipfile_serialization=False)[:40], "does not load"),
    "header broken": (struct.pack("<Q", 9) + b"{not json", "its safetensors header is damaged; copy or download it again"),
    **{
        f"header {text[:20]}": (struct.pack("<Q", len(text)) + text, "its safetensors header is damaged; copy or download it again")
        for text in (
            b'{"a": {}}',
            b'{"a": 3}',
            b'{"a": {"data_offsets": [0]}}',
            b'{"a": {"data_offsets": [0, "x"]}}',
            b'{"a": null}',
        )
    },
    "header nested": (struct.pack("<Q", 200_000) + b'{"a": ' + b"[" * 199_994, "its safetensors header is damaged"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_no_checkpoint_is_named_with_the_cure(kind: str, device: str, tmp_path: Path) -> None:
    content, message = KINDS[kind]
    for suffix in (".safetensors", ".bin"):
        file = tmp_path / f"weights{suffix}"
        file.write_bytes(content)
        with pytest.raises(UserError, match=message) as said:
            weightfile.read(file, device)
        assert f"model.pretrained: {file}" in str(said.value)
        assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    "content",
    [WHOLE, saved(STATE), saved(STATE, _use_new_zipfile_serialization=False), saved({"epoch": 3, "model": STATE})],
    ids=["safetensors", "torch", "old torch", "checkpoint"],
)
def test_the_suffix_does_not_matter_and_headers_are_enough_for_names_and_shapes(content: bytes, tmp_path: Path) -> None:
    for suffix in (".bin", ".safetensors", ".weights"):
        file = tmp_path / f"file{suffix}"
        file.write_bytes(content)
        read, shapes = weightfile.read(file), weightfile.read(file, "meta")
        assert set(read) == set(shapes) == set(STATE)
        assert all(read[name].equal(tensor) for name, tensor in STATE.items())
        assert all((shapes[n].shape, shapes[n].dtype, shapes[n].is_meta) == (t.shape, t.dtype, True) for n, t in STATE.items())


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code of a checkpoint was run')",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_pickled_code_is_never_run(zipped: bool, device: str, tmp_path: Path) -> None:
    (tmp_path / "evil.pt").write_bytes(saved({"a": torch.ones(2), "extra": Evil()}, _use_new_zipfile_serialization=zipped))
    with pytest.raises(UserError, match="it holds pickled code, which is never run; save its state dict alone"):
        weightfile.read(tmp_path / "evil.pt", device)


def test_a_checkpoint_in_several_files_is_read_by_its_index(tmp_path: Path) -> None:
    names = {name: f"model-0000{i + 1}-of-00002.safetensors" for i, name in enumerate(STATE)}
    for name, file in names.items():
        save_file({name: STATE[name]}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    read = weightfile.read(index)
    assert all(read[name].equal(tensor) for name, tensor in STATE.items())
    (tmp_path / names["a"]).unlink()
    with pytest.raises(UserError, match=r"lacks model-00001-of-00002.safetensors, which .*index.json names; copy all parts"):
        weightfile.read(index)
    index.write_text("[]")
    with pytest.raises(UserError, match=r"has no readable weight_map"):
        weightfile.read(index)


@pytest.mark.parametrize("names", [("model.x", "clip.x"), ("x", "module._orig_mod.x"), ("clip.model.visual.x", "clip.visual.x")])
def test_two_models_in_one_file_are_not_mixed(names: tuple[str, str], tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file({name: torch.full((2,), float(i)) for i, name in enumerate(names)}, file)
    for device in ("cpu", "meta"):
        with pytest.raises(UserError, match=r"holds two tensors for (visual\.)?x: .*; save the state dict of one model") as said:
            weightfile.read(file, device)
        assert all(name in str(said.value) for name in names)


def test_two_files_of_a_checkpoint_that_hold_one_name_are_refused(tmp_path: Path) -> None:
    for file, value in (("a.safetensors", 1.0), ("b.safetensors", 2.0)):
        save_file({"model.x": torch.tensor([value]), file: torch.ones(1)}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}))
    with pytest.raises(UserError, match=r"both a.safetensors and b.safetensors hold x, so which one counts is not known"):
        weightfile.read(index)


@pytest.mark.parametrize("part", ["model.safetensors.index.json", "other.bin.index.json"])
def test_an_index_that_names_an_index_is_refused(part: str, tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": part}}))
    with pytest.raises(UserError, match=f"index.json names {part}, which is an index and no weights file"):
        weightfile.read(index)


@pytest.mark.parametrize("error", [KeyError("x"), zipfile.BadZipFile("cut"), IndexError(), struct.error("unpack")])
def test_whatever_an_unpickler_raises_is_one_sentence(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(torch, "load", load)
    (tmp_path / "w.pt").write_bytes(saved(STATE))
    with pytest.raises(UserError, match=r"w.pt does not load: .+; copy or download it again"):
        weightfile.read(tmp_path / "w.pt")


def test_a_file_without_the_right_to_read_it_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(path: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "w.pt").write_bytes(saved(STATE))
    monkeypatch.setattr(Path, "open", deny)
    with pytest.raises(UserError, match=r"w.pt cannot be read \(Permission denied\); make it readable, or copy it again"):
        weightfile.read(tmp_path / "w.pt")
