"""Parts of messages that several modules share."""

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
import torch
from safetensors.torch import save_file

from flora_hpc.config import FeaturesConfig
from flora_hpc.data.datasets import _stored
from flora_hpc.embed import folder_of
from flora_hpc.errors import UserError, at_home, lock_cure, reason


def test_a_home_folder_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Like a user id without a name, in a container."""

    def unknown(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("FLORA_HPC_CACHE", raising=False)
    monkeypatch.delenv(_stored.VARIABLE, raising=False)
    assert at_home("~/x", "") == Path.home() / "x"
    monkeypatch.setattr(Path, "expanduser", unknown)
    with pytest.raises(UserError, match=r"^~/.cache/flora_hpc: HOME is not set.*; export HOME, or set FLORA_HPC_CACHE"):
        folder_of(FeaturesConfig())
    with pytest.raises(UserError, match=r"HOME is not set.*; export HOME, or set .* or data.root to a folder"):
        _stored.folder(None)


def test_a_file_system_without_locks() -> None:
    error = OSError(
        "[Errno 37] Unable to synchronously open file (unable to lock file, errno = 37, error message = 'No locks available')"
    )
    assert lock_cure(error).startswith("; unset HDF5_USE_FILE_LOCKING, or set it to FALSE")
    assert lock_cure(OSError("file signature not found")) == ""


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b"x"),
        lambda path: save_file({"x": torch.zeros(1)}, path),
        lambda path: h5py.File(path, "w"),
    ],
    ids=["the system", "safetensors", "HDF5"],
)
def test_every_library_s_error_gives_the_system_s_words(write: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"Is a directory|os error") as told:
        write(tmp_path)
    assert reason(told.value) == "Is a directory"


def test_an_error_without_words_has_its_name() -> None:
    assert reason(ValueError("two\nlines")) == "two lines"
    assert reason(EOFError()) == "EOFError"
    assert reason(OSError(5, "a\nb")) == "a b"
    assert reason(OSError(5, 7)) == "Input/output error"
    assert (
        reason(RuntimeError("no port\nException raised from listen at Socket.cpp:1 (most recent call first):\nframe")) == "no port"
    )
    many = shutil.Error([("/long" * 60, "/there", "[Errno 28] No space left on device: 'x'")])
    assert reason(many) == "No space left on device"
