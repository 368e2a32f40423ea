"""`filled_disk.py FOLDER WHEN ARGUMENTS...` is flora-hpc whose rank 0 fills FOLDER's disk with a file named ballast.

WHEN is the number of a round, or `adapter`: the moment when the round before is saved and this one is trained, or when all of them
are. `WHEN:ro` makes FOLDER read-only instead.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from flora_hpc import loop
from flora_hpc import round as rounds
from flora_hpc.cli import main
from flora_hpc.records import hdf5file

folder, when = Path(sys.argv.pop(1)), sys.argv.pop(1)
train, save_adapter = rounds.train_my_groups, loop.save_adapter


def fill() -> None:
    if when.endswith(":ro"):
        subprocess.run(["mount", "--bind", folder, folder], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", folder, folder], check=True)
        return
    left = os.statvfs(folder)
    (folder / "ballast").write_bytes(bytes(left.f_bavail * left.f_frsize))


def train_on_a_full_disk(setup, site, state, number):  # type: ignore[no-untyped-def]
    if site.comm.rank == 0 and when.split(":")[0] == str(number):
        out = Path(sys.argv[sys.argv.index("--out") + 1])
        while not (out / "checkpoint" / f"round-{number - 1:06d}.safetensors").exists():
            time.sleep(0.01)  # a thread writes it
        assert hdf5file.read(out)[1]["rounds"]["round"][-1] == number - 1
        fill()
    return train(setup, site, state, number)


def save_on_a_full_disk(*arguments):  # type: ignore[no-untyped-def]
    if when == "adapter":
        fill()
    save_adapter(*arguments)


rounds.train_my_groups, loop.save_adapter = train_on_a_full_disk, save_on_a_full_disk
main()
