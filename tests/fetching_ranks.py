"""`fetching_ranks.py LOG FILE ARGUMENTS...` is flora-hpc whose weights hang on a tag that a slow network delivers as FILE.

Every download is written to LOG with the rank that made it; as with the hub, who finds the file in the cache does not download.
"""

import shutil
import sys
import time
from pathlib import Path

import open_clip

from flora_hpc.cli import main
from flora_hpc.comm import launch

log, source = Path(sys.argv.pop(1)), Path(sys.argv.pop(1))
cache = log.with_name("cache.safetensors")


def download(*arguments: object) -> str:
    if not cache.exists():
        with log.open("a") as file:
            file.write(f"{launch.detect().rank}\n")
        time.sleep(1)
        shutil.copy(source, cache)
    return str(cache)


open_clip.download_pretrained = download
main()
