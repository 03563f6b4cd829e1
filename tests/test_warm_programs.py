"""A program that the tests start warm finds the same as one that is started by Python's own means."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.patience import DEADLINE
from tests.support.processes import make_environment, run_warm

pytestmark = pytest.mark.slow

SCRIPT = """
import atexit, os, pathlib, signal, sys, threading
atexit.register(print, "the end")
print(__name__, sys.argv, os.getcwd(), sys.path[0], sys.flags)
print(sorted(name for name in os.environ if name.startswith("TOLD")), os.environ["TOLD"])
print(sys.stdin.read(), sys.stdin.isatty(), sys.stdout.isatty(), sys.stdout.encoding, sys.stdout.line_buffering)
print([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGCHLD, signal.SIGTERM, signal.SIGPIPE)])
print(os.getpgrp(), os.getsid(0), threading.active_count())
descriptors = pathlib.Path("/proc/self/fd")
print(len(list(descriptors.iterdir())) if descriptors.exists() else "unknown")
print("a complaint", file=sys.stderr)
sys.exit(7)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A program that tells what it finds."""
    path = tmp_path / "script"
    path.write_text(SCRIPT)
    return path


def test_warm_start_is_like_a_start(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments, environment, folder, files, signals, group, outputs and status are those of a cold start."""
    monkeypatch.setenv("TOLD_OTHERS", "yes")
    environment = make_environment(TOLD="ünï")
    del environment["TOLD_OTHERS"]
    (folder := tmp_path / "folder").mkdir()

    warm = run_warm(script, "one", "two words", env=environment, stdin="typed", cwd=folder)
    cold = subprocess.run(
        [sys.executable, script, "one", "two words"],
        input="typed",
        capture_output=True,
        encoding="utf-8",
        timeout=DEADLINE,
        env=environment,
        cwd=folder,
        check=False,
    )

    assert (warm.returncode, warm.stdout, warm.stderr) == (cold.returncode, cold.stdout, cold.stderr)
    assert warm.returncode == 7
    assert warm.stdout.endswith("the end\n")


def test_warm_programs_are_processes_of_their_own(tmp_path: Path) -> None:
    """What one program changes in itself, the next one does not find."""
    script = tmp_path / "script"
    script.write_text("import os, sys\nprint(os.getpid(), hasattr(sys, 'changed'))\nsys.changed = True\n")

    first, second = (run_warm(script, env=make_environment()).stdout.split() for _ in range(2))

    assert first[1] == second[1] == "False"
    assert len({first[0], second[0], str(os.getpid())}) == 3


def test_signal_that_ends_a_warm_program_is_its_status(tmp_path: Path) -> None:
    """A program that was killed has the signal's negative number as its status, as with `subprocess`."""
    script = tmp_path / "script"
    script.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")

    assert run_warm(script, env=make_environment()).returncode == -9
