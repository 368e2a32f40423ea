"""Start `flora-hpc` with these arguments again and again, in forks of one process that has imported everything.

For each line on standard input one run starts, and its process number is printed; its exit status is printed when it has ended.
"""

import os
import sys

from flora_hpc import jobs, loop  # noqa: F401 -- the seconds of imports, once for all
from flora_hpc.cli import main


def say(what: object) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


say("ready")
for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        sys.argv = ["flora-hpc", *sys.argv[1:]]
        main()
    say(child)
    say(os.waitpid(child, 0)[1])
