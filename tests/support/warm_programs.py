"""Start an installed program from a process that has imported the libraries already: imports are most of a start.

The program is a process of its own all the same, with its own number, arguments, environment, folder and files. It runs
the installed script from the first line to the end of the interpreter. What a warm start cannot test is what comes
before the script: Python's own options and variables, the order of imports, and whether there is a terminal. Tests
about these, and some about each command, use `subprocess` instead.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

_IMPORTED = ("quart_tenants.app.cli", "quart_tenants.app.description", "quart.cli", "uvloop")
_MAX_DESCRIPTOR = 65536


class WarmProgram:
    """A running program. It has those of the members of `subprocess.Popen` that the tests use."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        files: tuple[int, int, int],
        env: Mapping[str, str],
        cwd: str | Path | None = None,
    ) -> None:
        """Start *command*, the first word of which is a script. *files* become stdin, stdout and stderr."""
        self.returncode: int | None = None
        order = {
            "command": [str(word) for word in command],
            "env": dict(env),
            "cwd": str(cwd or Path.cwd()),
            "hears_interrupts": signal.getsignal(signal.SIGINT) is not signal.SIG_IGN,
        }
        reader, writer = os.pipe()
        with tempfile.TemporaryFile() as paper:
            paper.write(json.dumps(order).encode())
            paper.seek(0)
            socket.send_fds(_start_warm_python(), [b"\0"], [paper.fileno(), *files, writer])
        os.close(writer)
        self._report = os.fdopen(reader)
        self.pid = int(self._report.readline())

    def poll(self) -> int | None:
        """Return the exit status as `Popen.poll` does, or None while the program runs."""
        return self._read_status(0.0)

    def wait(self, timeout: float) -> int:
        """Return the exit status when the program has ended.

        Raises:
            TimeoutExpired: It still runs after *timeout* seconds.
        """
        status = self._read_status(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the program has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, unless the program has ended."""
        self.send_signal(signal.SIGKILL)

    def _read_status(self, timeout: float) -> int | None:
        if self.returncode is None and select.select([self._report], [], [], timeout)[0]:
            with self._report:
                self.returncode = int(self._report.read())
        return self.returncode


@functools.cache
def _start_warm_python() -> socket.socket:
    """Start the process from which programs are forked, once in each process of the tests. It ends with that."""
    ours, its = socket.socketpair()
    with its:
        process = subprocess.Popen(
            [sys.executable, __file__, str(its.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[its.fileno()],
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _become_program(orders: socket.socket) -> None:
    """Wait for orders. Return in a new process for each, as the program that was ordered."""
    for name in _IMPORTED:
        importlib.import_module(name)
    # The garbage collector would look through all of it in each program, which so copies the memory of this process: of
    # 155 ms of CPU for the shortest program 110 are saved.
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Nobody waits for the processes that wait for programs.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        _, descriptors, _, _ = socket.recv_fds(orders, 1, 5)
        if not descriptors:
            sys.exit()
        if os.fork() == 0:
            break
        for descriptor in descriptors:
            os.close(descriptor)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    paper, *files, report = descriptors
    pid = os.fork()
    if pid:
        for descriptor in (paper, *files):
            os.close(descriptor)
        os.write(report, f"{pid}\n".encode())
        os.write(report, str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
        os._exit(0)
    with os.fdopen(paper) as text:
        order = json.load(text)
    if order["hears_interrupts"]:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, descriptor in enumerate(files):
        os.dup2(descriptor, number)
    os.closerange(3, _MAX_DESCRIPTOR)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    sys.argv = order["command"]
    sys.path[0] = str(Path(sys.argv[0]).parent)


if __name__ == "__main__":
    _become_program(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_path(sys.argv[0], run_name="__main__")
