"""`client.py PYTHON WORDS...` is `PYTHON WORDS...` in a fork of the server. See `__init__.py`. Started without site-packages."""

import fcntl
import json
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

ANSWERED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

python, *words = sys.argv[1:]
files = []
for number in sorted(int(entry.name) for entry in Path("/proc/self/fd").iterdir()):
    with suppress(OSError):  # the folder itself was open, too
        fcntl.fcntl(number, fcntl.F_GETFD)
        files.append(number)
connection = socket.socket(socket.AF_UNIX)
connection.connect(os.environ["FLORA_HPC_TEST_FORKS"])
request = {
    "words": words,
    "folder": str(Path.cwd()),
    "environment": dict(os.environ),
    "files": files,
    "umask": os.umask(0),
    "cores": sorted(os.sched_getaffinity(0)),
}
os.umask(request["umask"])  # which can only be read so
data = json.dumps(request).encode()
socket.send_fds(connection, [len(data).to_bytes(8, "little")], files)
connection.sendall(data)
fork = int.from_bytes(connection.recv(8), "little")
if fork == 0:  # this start is not one for a fork
    os.execv(python, [python, *words])


def pass_on(number: int, _: object) -> None:
    with suppress(ProcessLookupError):  # the fork has ended just now
        os.kill(fork, number)


for number in ANSWERED:
    signal.signal(number, pass_on)
answer = connection.recv(8)
if len(answer) < 8:
    sys.exit("the server of forks has ended")
code = int.from_bytes(answer, "little", signed=True)
if code < 0:
    if -code in ANSWERED:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
