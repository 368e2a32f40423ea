"""Build a wheel and a source archive, check both, install the wheel into a new environment, and run the quickstart there.

The new environment sees the packages of this one, so nothing is fetched; flora_hpc itself comes from the wheel.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
DIST = ROOT / "dist"
NEEDED = {"flora_hpc/configs/quickstart.yaml", "flora_hpc/configs/paper/setting.yaml", "flora_hpc/py.typed"}
FOREIGN = ("tests/", "docs/", ".venv/", "runs/")  # folders that no wheel has


def build() -> tuple[Path, Path]:
    """Build the source archive from the tracked files, and the wheel from the source archive."""
    shutil.rmtree(DIST, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        tracked = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=tracked, check=True)
        source = DIST / setuptools("build_sdist", Path(folder))
    with tempfile.TemporaryDirectory() as folder, tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
        (inside,) = Path(folder).iterdir()
        wheel = DIST / setuptools("build_wheel", inside)
    return wheel, source


def setuptools(function: str, folder: Path) -> str:
    """Call a function of setuptools' build backend in a folder of sources; the name of the file that it writes to dist/."""
    program = f"from setuptools import build_meta; print(build_meta.{function}({str(DIST)!r}))"
    print(f"{function} ...", flush=True)
    result = subprocess.run([sys.executable, "-c", program], cwd=folder, check=False, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{function} failed:\n{result.stdout}{result.stderr}")
    return result.stdout.splitlines()[-1]


def check(wheel: Path, source: Path) -> None:
    """Exit with a sentence when a file is missing or one is there that does not belong."""
    names = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(source) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    for kind, present in (("wheel", names), ("source archive", inside)):
        if missing := sorted(NEEDED - present):
            sys.exit(f"the {kind} lacks {missing[0]}")
    if foreign := sorted(name for name in names if name.startswith(FOREIGN)):
        sys.exit(f"the wheel has {foreign[0]}")


def play(wheel: Path) -> None:
    """Install the wheel into a new environment, and run the quickstart outside the clone."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        run(sys.executable, "-m", "venv", str(home / "venv"))
        python = home / "venv" / "bin" / "python"
        run(str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel))
        site = next((home / "venv" / "lib").glob("python*/site-packages"))
        (site / "packages_of_the_clone.pth").write_text(f"{next((Path(sys.prefix) / 'lib').glob('python*/site-packages'))}\n")
        command = [str(home / "venv" / "bin" / "flora-hpc"), "run", "quickstart", "-s", "rounds=2", "--out", "run"]
        environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run(command, cwd=home, env=environment | {"FLORA_HPC_CACHE": str(home / "cache")}, check=True)


def run(*command: str) -> None:
    """Run a command; a failure ends this program."""
    print(" ".join(command), flush=True)
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"failed: {' '.join(command)}")


def main() -> None:
    """Build, check, play."""
    wheel, source = build()
    check(wheel, source)
    play(wheel)
    for path in (wheel, source):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e6:.1f} MB, checked")


if __name__ == "__main__":
    main()
