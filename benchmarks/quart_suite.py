"""Run Quart's own tests without and with what we put around an app: `python -m benchmarks.quart_suite`.

Exits 1 where a test ends otherwise with our parts than without. Quart's releases on PyPI have no tests in them, so this
clones Quart's repository at the version that is installed here. Without access to it, give a folder of tests.
"""

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from quart import Quart

from quart_tenants.server.one_task_requests import serve_requests
from quart_tenants.web.answers.row_streams import StreamEnds
from quart_tenants.web.guards.deadlines import RequestDeadlines
from quart_tenants.web.guards.framing import RequestFraming

_REPOSITORY = "https://github.com/pallets/quart"
_SETTINGS = "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = session\n"
_REQUEST_TIMEOUT = 60.0  # seconds


def pytest_configure(config: pytest.Config) -> None:
    """Let every app that the tests make have our parts. This module is a plugin of the second run."""
    made: Any = Quart.__init__

    def make(app: Quart, *arguments: Any, **options: Any) -> None:
        made(app, *arguments, **options)
        serve_requests(app)
        guarded = RequestFraming(RequestDeadlines(StreamEnds(app.asgi_app), _REQUEST_TIMEOUT))
        app.asgi_app = guarded  # type: ignore[method-assign, assignment]

    Quart.__init__ = make  # type: ignore[method-assign, assignment]


def clone_tests(folder: Path) -> Path:
    """Return the tests of the installed version of Quart, fetched into *folder*."""
    command = ["git", "clone", "-q", "--depth", "1", "--branch", version("quart"), _REPOSITORY, str(folder / "quart")]
    subprocess.run(command, check=True)
    return folder / "quart" / "tests"


def run_tests(tests: Path, folder: Path, *, with_ours: bool) -> dict[str, str]:
    """Return how each of *tests* ends."""
    folder.mkdir()
    settings, report = folder / "pytest.ini", folder / "report.xml"
    settings.write_text(_SETTINGS)
    command = [sys.executable, "-m", "pytest", "-q", "-c", str(settings), "-p", "no:cacheprovider"]
    command += ["--tb", "no", f"--rootdir={tests}", f"--junitxml={report}", str(tests)]
    if with_ours:
        command += ["-p", __spec__.name]
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    return {
        f"{case.get('classname')}::{case.get('name')}": next((child.tag for child in case), "passed")
        for case in ElementTree.parse(report).iter("testcase")  # noqa: S314  (pytest has just written it)
    }


def main(tests: Path | None) -> int:
    """Run the tests twice; return the exit status."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = clone_tests(folder) if tests is None else tests.resolve()
        plain = run_tests(found, folder / "plain", with_ours=False)
        ours = run_tests(found, folder / "ours", with_ours=True)
    print(f"Quart {version('quart')} by itself: {dict(Counter(plain.values()))}")
    print(f"Quart {version('quart')} with our parts: {dict(Counter(ours.values()))}")
    differing = sorted(test for test in plain | ours if plain.get(test) != ours.get(test))
    for test in differing:
        print(f"{test}: {plain.get(test)} by itself, {ours.get(test)} with our parts")
    return 1 if differing or not plain else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", type=Path, help="the folder `tests` of a copy of Quart's repository")
    sys.exit(main(parser.parse_args().tests))
