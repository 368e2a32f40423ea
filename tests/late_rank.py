"""`late_rank.py RANK SECONDS ARGUMENTS...` is flora-hpc, one rank of which starts so much later."""

import os
import sys
import time

from flora_hpc.cli import main

rank, seconds = sys.argv.pop(1), float(sys.argv.pop(1))
if os.environ["RANK"] == rank:
    time.sleep(seconds)
main()
