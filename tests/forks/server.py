"""Forks of this process, which has imported everything, at the socket that its argument names, until standard input closes."""

import os

STARTED_WITH = dict(os.environ)  # before imports set what PyTorch is to read

import fcntl  # noqa: E402
import gc  # noqa: E402
import json  # noqa: E402
import runpy  # noqa: E402
import select  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from contextlib import suppress  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from flora_hpc import cli, jobs, loop  # noqa: E402, F401

READ_ONCE = (
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "PYTHON", "LD_", "LC_", "LANG", "MALLOC_", "CU", "XDG_"),
    *("HDF5_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TORCH_HOME"),
)
MOST_FILES, ABOVE = 200, 500  # open files of a client; numbers that none of them has


class Server:
    """Answers clients, one event at a time."""

    def __init__(self, address: str) -> None:
        self.listener, self.poll = socket.socket(socket.AF_UNIX), select.poll()
        self.clients = dict[int, tuple[socket.socket, int]]()  # file of a connection -> connection, fork
        self.forks = dict[int, int]()  # file of a fork's process -> file of its connection
        self.listener.bind(address)
        self.listener.listen(64)
        for file in (0, self.listener.fileno()):
            self.poll.register(file, select.POLLIN)

    def serve(self) -> tuple[dict[str, Any], list[int]]:
        """Answer until this process is a fork; returns the request that it is for, and the client's files."""
        while True:
            file = self.poll.poll()[0][0]
            if file == 0:
                sys.exit()
            elif file in self.forks:
                self.tell_end(file)
            elif file in self.clients:  # clients send nothing more: this one was killed
                self.poll.unregister(file)
                os.kill(self.clients[file][1], signal.SIGKILL)
            elif (found := self.begin(self.listener.accept()[0])) is not None:
                return found

    def begin(self, connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
        try:
            request, files = receive(connection)
        except ConnectionError:  # a client that was killed as it began
            connection.close()
            return None
        if differs(request["environment"]):
            with suppress(OSError):
                connection.sendall(bytes(8))
            connection.close()
        elif (fork := os.fork()) == 0:
            return request, files
        else:
            process = os.pidfd_open(fork)
            self.clients[connection.fileno()], self.forks[process] = (connection, fork), connection.fileno()
            self.poll.register(connection, select.POLLIN)
            self.poll.register(process, select.POLLIN)
            with suppress(OSError):
                connection.sendall(fork.to_bytes(8, "little"))
        for file in files:
            os.close(file)
        return None

    def tell_end(self, process: int) -> None:
        connection, fork = self.clients.pop(self.forks.pop(process))
        code = os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])
        self.poll.unregister(process)
        os.close(process)
        with suppress(KeyError):  # a client that was killed is unregistered already
            self.poll.unregister(connection)
        with suppress(OSError):
            connection.sendall(code.to_bytes(8, "little", signed=True))
        connection.close()


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What a client asks for, and its open files. Raises ConnectionError when it ends before it has said that."""
    size, files, _, _ = socket.recv_fds(connection, 8, MOST_FILES)
    data = b""
    while len(data) < int.from_bytes(size, "little") or not size:
        more = connection.recv(2**20) if size else b""
        if not more:
            for file in files:
                os.close(file)
            raise ConnectionError
        data += more
    return json.loads(data), files


def differs(environment: dict[str, str]) -> bool:
    """Whether something that is read once, before this process forks, has another value there."""
    mine, theirs = ({k: v for k, v in some.items() if k.startswith(READ_ONCE)} for some in (STARTED_WITH, environment))
    return mine != theirs


def become(request: dict[str, Any], files: list[int]) -> None:
    """Take the client's place: its files under their numbers, and no other ones."""
    held = {number: fcntl.fcntl(file, fcntl.F_DUPFD, ABOVE) for number, file in zip(request["files"], files, strict=True)}
    os.closerange(0, ABOVE)
    for number, file in held.items():
        os.dup2(file, number)
        os.close(file)
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        by_line = 1 if number == 2 or (number in held and os.isatty(number)) else -1
        errors = getattr(sys, name).errors  # Python's own choice, of the same locale
        stream = os.fdopen(number, mode, by_line, errors=errors, closefd=False) if number in held else None
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    tempfile.tempdir = None  # TMPDIR is looked at anew
    os.umask(request["umask"])
    os.chdir(request["folder"])
    os.sched_setaffinity(0, request["cores"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):  # a run in pytest's process leaves some ignored
        signal.signal(number, signal.SIG_DFL)


signal.signal(signal.SIGINT, signal.SIG_IGN)
server = Server(sys.argv[1])
gc.freeze()  # what is imported is no garbage, and forks do not look for any in it
sys.stdout.write("ready\n")
sys.stdout.flush()
request, files = server.serve()
become(request, files)
first, *words = request["words"]
if first == "-m":
    module, *words = words
    sys.path[0], sys.argv = request["folder"], [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
else:
    sys.path[0], sys.argv = str(Path(first).parent), [first, *words]
    runpy.run_path(first, run_name="__main__")
