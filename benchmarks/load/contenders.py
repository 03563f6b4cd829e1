"""Name who is measured."""

import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load.cluster import OURS, PEERS

PEERS_FOLDER = Path(__file__).parents[1] / "peers"
_PROGRAM = Path(sys.executable).with_name("quart-tenants")

_UVICORN = ("uvicorn", "app:app", "--port", "{port}", "--workers", "{workers}", "--log-level", "warning",
            "--no-access-log")  # fmt: skip
_HYPERCORN = ("hypercorn", "app:app", "--bind", "127.0.0.1:{port}", "--workers", "{workers}", "--worker-class",
              "uvloop")  # fmt: skip
# Without threads gunicorn has no keep-alive. The numbers below beat fewer and more.
_GUNICORN = ("gunicorn", "--bind", "127.0.0.1:{port}", "--workers", "{workers}", "--worker-class", "gthread",
             "--keep-alive", "75")  # fmt: skip


@dataclass(frozen=True)
class Contender:
    """Somebody who serves `/data`.

    Attributes:
        name: For `--only`, and of a peer's folder.
        title: In tables.
        command: That serves; of a peer the first word lies in its environment.
        target: At least this, its CPU per request over ours.
        database: Where its tenants are.
        is_ours: Whether it is this project, in whatever state, and no peer.
        session: Whether it asks for one.
    """

    name: str
    title: str
    command: tuple[str, ...]
    target: float | None = None
    database: str = PEERS
    is_ours: bool = False
    session: bool = True


THIS_PROJECT = Contender("ours", "this project, Hypercorn", (str(_PROGRAM), "serve"), database=OURS, is_ours=True)
BARE = Contender("bare", "bare ASGI and one query, Hypercorn", _HYPERCORN, session=False)
# The bare limit's target is the other way round: see the report.
CONTENDERS = (
    THIS_PROJECT,
    BARE,
    Contender("fastapi", "hand-written FastAPI, Uvicorn", _UVICORN, 1.25),
    Contender("quart", "straightforward Quart, Hypercorn", _HYPERCORN, 1.6),
    Contender("seed", "the seed's Flask, gunicorn", (*_GUNICORN, "--threads", "4", "app:app"), 2.2),
    Contender("fastapi_tenancy", "fastapi-tenancy, Uvicorn", _UVICORN, 3.0),
    Contender("django_tenants", "django-tenants, gunicorn", (*_GUNICORN, "--threads", "16", "wsgi:application"), 3.2),
)

TRACED = Contender(
    "traced",
    "this project, with spans",
    (sys.executable, str(PEERS_FOLDER.with_name("traced_server.py")), "serve"),
    database=OURS,
    is_ours=True,
)


def get_other_version(program: Path) -> Contender:
    """Return another state of this project, to be compared with this one."""
    return Contender("other", "another version of this project", (str(program), "serve"), database=OURS, is_ours=True)
