"""A run continues and a command exits silently, even when standard output or standard error fails."""

import io
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from rich.console import Console

from flora_hpc import cli, screen
from flora_hpc.observers.plain import Plain
from flora_hpc.observers.quiet import Quiet
from flora_hpc.observers.terminal import Terminal
from flora_hpc.records import hdf5file
from flora_hpc.records.hdf5file import Writer
from flora_hpc.screen import Screen
from tests.conftest import ROOT
from tests.contracts.known_helpers import round_record, run_info

TINY = ["rounds=2", "client.epochs=1", "partition.name=iid", "partition.num_clients=2", "data.name=hdf5"]


def onto(target: BinaryIO, encoding: str = "utf-8") -> Screen:
    return Screen("stdout", io.TextIOWrapper(target, encoding=encoding, write_through=True))


def without_reader() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def without_terminal() -> int:
    master, terminal = pty.openpty()
    os.close(master)
    return terminal


LOST: dict[str, tuple[Callable[[], int], str]] = {
    "pipe": (without_reader, "Broken pipe"),
    "disk": (lambda: os.open("/dev/full", os.O_WRONLY), "No space left on device"),
    "terminal": (without_terminal, "Input/output error"),
}


# --- characters


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "koi8-r", "utf-8"])
@pytest.mark.parametrize("view", [Plain, Quiet, Terminal])
def test_every_view_of_a_run_fits_every_encoding(view: Any, encoding: str, tmp_path: Path) -> None:
    """Including file names with bytes that are not UTF-8."""
    shown = io.BytesIO()
    stream = onto(shown, encoding)
    console = Console(file=stream, width=80, force_terminal=view is Terminal or None)
    observer = view(Path("caf\udce9 猫"), console)
    observer.started(run_info(dataset="Gänse µ 猫 \ud800", warnings=("the classes 'a → b' and 'a\udcff' …",)))
    for number in range(3):
        observer.round(round_record(number, accuracy=0.25 + number / 4))
    observer.ended("finished")
    stream.flush()
    text = shown.getvalue().decode(encoding)
    assert "0.2500 -> 0.7500" in text or (encoding == "utf-8" and "0.2500 → 0.7500" in text)
    assert stream.loss == f"standard output: has characters replaced that {encoding} lacks"


@pytest.mark.parametrize(
    ("text", "ascii"),
    [
        ("12 µs → 3 μs", "12 us -> 3 us"),
        ("0.5 ± 0.1", "0.5 +- 0.1"),
        ("▁▄█ ■ ⠿", "_=# # ."),
        ("╭─┬│╯ ┗━┃", "+-+|+ +-|"),
        ("é Ä ½ … “x” ﬁ", 'e A 12 ... "x" fi'),
        ("Straße Łódź øre Œuvre Æ ħ ı ŋ", "Strasse Lodz ore OEuvre AE h i ?"),  # noqa: RUF001
        ("猫\udc80\ud800", "???"),
        ("2 × 3 – 1", "2 x 3 - 1"),  # noqa: RUF001
    ],
)
def test_what_is_lacking_becomes_the_nearest_that_is_there(text: str, ascii: str) -> None:
    shown = io.BytesIO()
    stream = onto(shown, "ascii")
    print(text, file=stream, flush=True)
    assert shown.getvalue().decode() == f"{ascii}\n"


def test_what_is_not_lacking_is_not_touched() -> None:
    shown = io.BytesIO()
    stream = onto(shown, "latin-1")
    print("Gänse µ ×", file=stream, flush=True)  # noqa: RUF001
    assert shown.getvalue() == "Gänse µ ×\n".encode("latin-1")  # noqa: RUF001
    assert stream.loss == ""


def test_output_for_programs_is_utf_8_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", onto(shown, "ascii"))
    screen.for_programs()
    sys.stdout.write("Gänse → 猫, caf\udce9\n")
    sys.stdout.flush()
    assert shown.getvalue() == "Gänse → 猫, caf".encode() + b"\xe9\n"
    assert screen.loss() == ""


# --- whoever reads it goes away


@pytest.mark.parametrize("kind", LOST)
@pytest.mark.parametrize("buffered", [True, False])
def test_what_cannot_be_written_is_dropped_and_remembered(kind: str, buffered: bool) -> None:
    make, why = LOST[kind]
    with open(make(), "wb") as file:
        stream = Screen("stderr", io.TextIOWrapper(file, encoding="utf-8", write_through=not buffered))
        for _ in range(3):
            print("x" * 10_000, file=stream, flush=True)
        assert stream.loss == f"standard error: lost ({why})"


def test_a_full_pipe_that_does_not_block_loses_nothing() -> None:
    """Some launchers make their ranks' pipes non-blocking."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    received: list[bytes] = []

    def read() -> None:
        with open(reader, "rb") as file:
            received.append(file.read())

    thread = threading.Thread(target=read)
    thread.start()
    with open(writer, "wb") as file:
        stream = onto(file)
        print("x" * 1_000_000, file=stream, flush=True)
    thread.join(30)
    assert received == [b"x" * 1_000_000 + b"\n"]
    assert stream.loss == ""


# --- commands


def main(monkeypatch: pytest.MonkeyPatch, stdout: int, *arguments: object) -> tuple[int, str]:
    """Run the program in this process on such a standard output: its exit code and its standard error."""
    said = io.BytesIO()
    monkeypatch.setattr(sys, "argv", ["flora-hpc", *map(str, arguments)])
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(said, encoding="utf-8", write_through=True))
    with open(stdout, "w", encoding="utf-8", buffering=1) as file:
        monkeypatch.setattr(sys, "stdout", file)
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return int(ended.value.code or 0), said.getvalue().decode()


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    writer = Writer(tmp_path / "run.h5", run_info())
    for number in range(3):
        writer.add(round_record(number, accuracy=number / 4))
    writer.close("finished")
    return tmp_path


@pytest.mark.parametrize("kind", ["pipe", "disk"])
def test_a_run_goes_on_to_its_end_and_notes_it(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, squares: Path) -> None:
    make, why = LOST[kind]
    settings = [word for setting in (*TINY, f"data.path={squares}") for word in ("-s", setting)]
    code, said = main(monkeypatch, make(), "run", ROOT / "configs" / "quickstart.yaml", *settings, "--out", tmp_path / "run")
    attributes, tables = hdf5file.read(tmp_path / "run")
    assert code == 0, said
    assert "Error" not in said
    assert (attributes["status"], attributes["screen"]) == ("finished", f"standard output: lost ({why})")
    assert tables["rounds"]["round"].tolist() == [0, 1, 2]
    assert (tmp_path / "run" / "adapter").is_dir()


@pytest.mark.parametrize("command", ["show", "show --rounds", "show --csv --clients", "show --json", "watch", "report", "list"])
def test_a_command_ends_quietly_when_nobody_reads_it(
    command: str, finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = command.split()
    assert main(monkeypatch, without_reader(), *words, *([finished] if words[0] != "list" else [])) == (0, "")
    assert (tmp_path / "report.html").exists() == (command == "report"), "what is more than words is done all the same"


@pytest.mark.parametrize("command", ["show", "show --csv --clients", "list"])
def test_output_that_a_full_disk_cuts_off_is_no_success(command: str, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = command.split()
    ended = main(monkeypatch, LOST["disk"][0](), *words, *([finished] if words[0] != "list" else []))
    why = "standard output cannot be written (No space left on device); what was printed is incomplete"
    assert ended == (2, f"flora-hpc: {why}: make room, and start again\n")


def test_whoever_watches_a_run_that_goes_on_leaves_with_the_reader(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run.h5", run_info())
    writer.add(round_record(0))
    ended = main(monkeypatch, without_reader(), "watch", tmp_path)
    writer.close("finished")
    assert ended == (0, "")


def test_a_mistake_is_still_told_with_exit_code_2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code, said = main(monkeypatch, without_reader(), "show", tmp_path / "caf\udce9 猫")
    assert code == 2
    assert said.startswith("flora-hpc: ")
    assert "caf?" in said


def test_a_new_process_in_the_c_locale_ends_quietly_when_nobody_reads_it(finished: Path) -> None:
    """The interpreter prints nothing at its exit, either; and standard error may be closed."""
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    shell = (
        f'{sys.executable} -m flora_hpc show "$0" | head -1; echo ${{PIPESTATUS[0]}}; {sys.executable} -m flora_hpc show "$0" 2>&-'
    )
    done = subprocess.run(["bash", "-c", shell, finished], capture_output=True, env=environment, timeout=120)
    assert done.stderr == b""
    lines = done.stdout.decode("ascii").splitlines()
    assert lines[:2] == [str(finished), "0"]
    assert any("0.0000 -> 0.5000" in line for line in lines)
