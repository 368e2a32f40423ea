"""Start flora-hpc on one core: `python -m flora_hpc.bench.pin CORES arguments...`, where local rank i gets core i of CORES.

The process is pinned before torch is imported, so that torch's threads and the rank's share of cores stay on that core.
"""

import os
import sys

from flora_hpc.comm import launch


def main() -> None:
    """Pin this process, then become flora-hpc."""
    cores = sys.argv[1].split(",")
    os.sched_setaffinity(0, {int(cores[launch.detect().local_rank])})
    os.execv(sys.executable, [sys.executable, "-m", "flora_hpc", *sys.argv[2:]])


if __name__ == "__main__":
    main()
