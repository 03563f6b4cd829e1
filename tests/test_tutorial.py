"""The tutorial, followed in an empty folder: its blocks are the files of the example, and its lines run."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.patience import DEADLINE
from tests.support.processes import PROGRAM, make_environment, run_warm_program, wait_for_answer, wait_for_line

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "notes"
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
COPIED = ("templates", "static", "test_notes.py")
# What the page cannot know: where the checkout is, and which database a reader has.
CHECKOUT = 'checkout="/path/to/quart_tenants"'
DATABASE = "export QUART_TENANTS_DATABASE_URL=postgresql://user:password@localhost/mydatabase"
# The test has an environment already, and installs nothing.
INSTALLING = ("python3 -m venv .venv", '.venv/bin/pip install "${checkout}[demo,testing]"')


def read_files(page: str) -> dict[str, str]:
    """Return what a reader of *page* has written, by the name of the file: its blocks, one after the other."""
    files: dict[str, str] = {}
    for name, block in re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', page, re.MULTILINE | re.DOTALL):
        files[name] = files.get(name, "") + block
    return files


def drop_empty_lines(text: str) -> list[str]:
    """Return the lines of *text* in which something stands."""
    return [line for line in text.splitlines() if line.strip()]


def find_differences(page: str) -> list[str]:
    """Return the files of the example that *page* does not have, has otherwise, or has in addition."""
    written = read_files(page)
    files = [path for path in EXAMPLE.rglob("*") if path.suffix in (".py", ".sql", ".ini")]
    names = {path.relative_to(EXAMPLE).as_posix() for path in files if "__pycache__" not in path.parts}
    return [
        name
        for name in sorted(names.difference(COPIED) | written.keys())
        if name not in COPIED
        and (
            name not in names
            or drop_empty_lines(written.get(name, "")) != drop_empty_lines((EXAMPLE / name).read_text())
        )
    ]


def test_blocks_are_the_files_of_the_example() -> None:
    """Whoever types all blocks has the example, line by line. Of the tests, which are copied, only a piece is shown."""
    assert find_differences(TUTORIAL) == []
    assert read_files(TUTORIAL)["test_notes.py"] in (EXAMPLE / "test_notes.py").read_text()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("def clean_name(", "def clear_name("),
        ('title="migrations/0002_search.sql"', 'title="0002.sql"'),
        ("import uuid\n", ""),
    ],
)
def test_changed_block_is_found(old: str, new: str) -> None:
    """Negative control: a letter that differs, a file under another name and a line that is missing are seen."""
    assert find_differences(TUTORIAL.replace(old, new, 1)) != []


# The lines for the shell


def read_lines(page: str) -> list[str]:
    """Return the lines that *page* lets a reader type into a shell."""
    return "".join(re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)).splitlines()


class Reader:
    """Somebody who follows the page in *folder*, from heading to heading."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self.folder = folder
        self.database_url = database_url

    def type(self, page: str) -> None:
        """Write the files of *page*, with a # before the line with `write_digest` until that is there."""
        for name, text in read_files(page).items():
            if name not in COPIED:
                is_whole = name != "notes.py" or "def write_digest" in text
                (self.folder / name).write_text(text if is_whole else re.sub(r"(?m)^(?=.*write_digest)", "#", text))

    def run(self, lines: list[str], **settings: str) -> str:
        """Run *lines* in one shell, which ends at the first that fails; return what they print."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", "\n".join(lines)],
            cwd=self.folder,
            env=make_environment(**settings),
            stdout=subprocess.PIPE,
            text=True,
            timeout=DEADLINE,
            check=True,
        )
        return done.stdout

    @contextmanager
    def serve(self, line: str, log: Path) -> Iterator[str]:
        """Run *line*, which serves until Ctrl-C, at any free port; yield the port."""
        *settings, program, command, app, name = line.split()
        assert (Path(program), app) == (Path(".venv/bin/quart-tenants"), "--app")
        environment = dict(setting.split("=") for setting in settings)
        with run_warm_program(command, app, name, "--port", "0", log=log, cwd=self.folder, **environment) as process:
            port = wait_for_line(process, "Your app is at http://localhost:", log).rpartition(":")[2]
            wait_for_answer(int(port))
            yield port


def ask(port: str, method: str, path: str, slug: str = "", *, cookie: str = "", **options: object) -> httpx.Response:
    """Return the answer to a browser, at the address of a tenant or at the domain itself."""
    headers = {"Host": f"{slug}.localhost:{port}".removeprefix("."), "Accept": "text/html", "Cookie": cookie}
    return httpx.request(method, f"http://127.0.0.1:{port}{path}", headers=headers, timeout=DEADLINE, **options)  # type: ignore[arg-type]


@pytest.mark.slow
def test_lines_run_in_an_empty_folder(tmp_path: Path, empty_database_url: str) -> None:
    """All lines, in the page's order, in a folder whose name has a space. Only the installation is left out."""
    begin, see, run, test, server = split_page()
    folder = tmp_path / "my notes"
    folder.mkdir()
    reader = Reader(folder, empty_database_url)
    (folder / ".venv").symlink_to(PROGRAM.parents[1])

    lines = read_lines(begin)
    assert lines[:3] == [CHECKOUT, *INSTALLING]
    reader.run([f"checkout='{ROOT}'", *lines[3:]])
    reader.type(begin)
    (demo,) = read_lines(see)
    with reader.serve(demo, tmp_path / "log") as port:
        form = {"slug": "acme", "email": "ada@acme.test", "password": "foo"}
        assert f"http://acme.localhost:{port}/sign-in" in ask(port, "POST", "/sign-up", data=form).text
        cookie = ask(port, "POST", "/sign-in", "acme", data=form).headers["Set-Cookie"].partition(";")[0]
        form_id = re.findall('name="form_id" value="([^"]+)"', ask(port, "GET", "/", "acme", cookie=cookie).text)[0]
        note = {"body": "My first note.", "form_id": form_id}
        assert ask(port, "POST", "/notes", "acme", cookie=cookie, data=note).status_code == 303
        assert "Not Found" in ask(port, "GET", "/notes.csv", "acme", cookie=cookie).text

    reader.type(begin + see + run)
    demo, *commands = read_lines(run)
    with reader.serve(demo, tmp_path / "log") as port:
        assert "My first note." in ask(port, "GET", "/notes.csv", "acme", cookie=cookie).text
        assert ask(port, "GET", "/operators", auth=("anybody", "sesame")).status_code == 200
        # The line that the demo prints, as the page says.
        (export,) = re.findall(
            "^ *(export QUART_TENANTS_DATABASE_URL=.*)$", (tmp_path / "log.out").read_text(), re.MULTILINE
        )
        printed = reader.run([export, *(line.replace("localhost:5000", f"localhost:{port}") for line in commands)])
    (shown,) = re.findall(r"^```text\n(.*?)^```$", run, re.MULTILINE | re.DOTALL)
    assert printed.endswith(shown.replace("localhost:5000", f"localhost:{port}"))
    assert "0002" in printed.removesuffix(shown)

    reader.type(begin + see + run + test)
    assert find_differences(TUTORIAL) == []
    # One of its tests says that the test kit has all it needs. The others run with the example.
    assert "1 passed" in reader.run(read_lines(test), PYTEST_ADDOPTS="-k nothing_leaks -p no:cacheprovider -p no:xdist")

    lines = read_lines(server)
    assert lines[0] == DATABASE
    lines[0] = f"export QUART_TENANTS_DATABASE_URL='{empty_database_url}'"
    lines[-1] = f"exec {lines[-1]} --port 0"
    with (tmp_path / "server.log.out").open("w") as out, (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(
            ["bash", "-euc", "\n".join(lines)], cwd=folder, env=make_environment(), stdout=out, stderr=log, text=True
        )
        try:
            port = wait_for_line(process, "serving on", tmp_path / "server.log").rpartition(":")[2]
            assert "Sign up" in ask(port, "GET", "/").text
        finally:
            process.terminate()
            assert process.wait(DEADLINE) == 0


def split_page() -> list[str]:
    """Return the page in the parts after which something runs."""
    parts = re.split(r"^(?=## (?:See it|Attachments|Test it|On a server)$)", TUTORIAL, flags=re.MULTILINE)
    assert len(parts) == 5
    return parts
