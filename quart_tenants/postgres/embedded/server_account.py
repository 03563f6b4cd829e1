"""Run PostgreSQL's programs under an account that is not root, because they refuse to run as root."""

import contextlib
import ctypes
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quart_tenants.errors import EmbeddedPostgresError

if sys.platform != "win32":
    import pwd

# The traditional number of `nobody`, for systems that do not list that user.
_NOBODY = 65534
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>


@dataclass(frozen=True, slots=True)
class Account:
    """The account of the programs: that of this process, unless a field names another."""

    name: str
    uid: int | None = None
    gid: int | None = None
    prefix: tuple[str, ...] = ()

    def start(self, command: Sequence[str | Path], folder: Path, output: int) -> subprocess.Popen[bytes]:
        """Start *command* in *folder* as a child that a Ctrl-C in the terminal does not reach.

        On Linux it gets SIGINT when the calling thread ends, also by a kill.

        Args:
            command: The full path of the program, and its arguments.
            folder: The working folder. The account must be able to enter it.
            output: The file descriptor for stdout and stderr.
        """
        return subprocess.Popen(
            [*self.prefix, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={name: text for name, text in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"},
            process_group=0,
            user=self.uid,
            group=self.gid,
            extra_groups=None if self.uid is None else [],
            preexec_fn=_before_program(folder),
        )

    def find_problem(self, postgres: Path, folder: Path) -> str | None:
        """Try to run *postgres* in *folder*, and return what went wrong."""
        reading, writing = os.pipe()
        try:
            with os.fdopen(reading, "rb") as output:
                try:
                    process = self.start([postgres, "--version"], folder, writing)
                finally:
                    os.close(writing)
                said = output.read().decode(errors="replace").strip()
        except (OSError, subprocess.SubprocessError) as error:
            return f"it cannot reach {folder} or {postgres}: {error}"
        return None if process.wait() == 0 else said or f"{postgres} does not run"

    def create_folder(self, path: Path) -> None:
        """Create the private folder *path* for the account, or use the one from an earlier try.

        Raises:
            EmbeddedPostgresError: Something else is there, for example from another user.
        """
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        status = path.lstat()
        strange = status.st_uid not in {os.geteuid(), self.uid} or status.st_mode & 0o077
        if strange or not stat.S_ISDIR(status.st_mode):
            raise EmbeddedPostgresError(f"{path} is in the way; remove it, or choose another --data-dir")
        self.own(path)

    def own(self, path: Path) -> None:
        """Give *path* to the account. Nothing happens for the account of this process."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)


def choose_account(postgres: Path, data_dir: Path, cluster: Path, own_names: frozenset[str]) -> Account:
    """Return an account that can run *postgres* on *cluster*, which need not exist yet.

    For root this is the owner of an existing cluster. A new cluster goes to `nobody`. If that user cannot reach the
    files, the programs run as root inside a user namespace in which root has the number of nobody. *data_dir* gets
    another owner only if it is root's, private, and has no other content than *own_names*: a user's own folder must
    never change its owner here.

    Raises:
        EmbeddedPostgresError: No account can. The error says why and what to do.
    """
    accounts, giving = _list_accounts(data_dir, cluster, own_names)
    problems = []
    for account in accounts:
        given = giving and account.uid is not None
        # A folder that the account is going to get need not let it in yet.
        problem = account.find_problem(postgres, data_dir.parent if given else data_dir)
        if problem is None:
            if given:
                account.own(data_dir)
            return account
        problems.append(f"as {account.name}: {problem}")
    raise EmbeddedPostgresError(
        f"PostgreSQL cannot run in {data_dir} ({'; '.join(problems)}); run this as an ordinary user, or keep the "
        "virtual environment and the data where every user may look, for example --data-dir /srv/quart-tenants"
    )


def _list_accounts(data_dir: Path, cluster: Path, own_names: frozenset[str]) -> tuple[list[Account], bool]:
    """Return the accounts to try in turn, and whether one with a uid may be given *data_dir*."""
    if os.geteuid() != 0:
        return [Account("this user")], False
    exists = cluster.exists()
    status = (cluster if exists else data_dir).stat()
    if status.st_uid != 0:
        return [Account("the owner of the folder", status.st_uid, status.st_gid)], False
    unshare = ("unshare", "--user", f"--map-user={_NOBODY}", f"--map-group={_NOBODY}", "--")
    in_namespace = Account("root in a user namespace", prefix=unshare)
    if exists:
        return [in_namespace], False
    uid = gid = _NOBODY
    with contextlib.suppress(KeyError):
        uid, gid = pwd.getpwnam("nobody")[2:4]
    private = status.st_mode & 0o077 == 0
    giving = private and {path.name for path in data_dir.iterdir()} <= own_names
    return [Account("nobody", uid, gid), in_namespace], giving


def _before_program(folder: Path) -> Callable[[], None]:
    """Return what the child does after it has changed its user and before it becomes the program.

    At the fork another thread may hold any lock, so everything that can be prepared is prepared here.
    """
    parent = os.getpid()
    # A change of the user clears the death signal, so it cannot be set any earlier.
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
    number = ctypes.c_ulong(signal.SIGINT)

    def prepare() -> None:
        os.chdir(folder)
        if prctl is not None:
            prctl(_SET_DEATH_SIGNAL, number)
            if os.getppid() != parent:  # it died before the line above
                os._exit(1)

    return prepare
