"""An adopter's app in a folder of its own, for tests of how it is served."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import init_registry
from quart_tenants.postgres.tenants.provisioning import create_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import parse_slug
from tests.support.processes import Server, run_warm_program, wait_for_line

NOTES = '''
"""Notes of tenants."""

from pathlib import Path

from quart import Quart, url_for
from quart.asgi import ASGIHTTPConnection

from quart_tenants import QuartTenants, tenant_connection

VERSION = 1


def create_app():
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config["TENANTS_MIGRATIONS_DIR"] = Path(__file__).parent / "migrations"
    app.config["TENANTS_POOL_MAX_SIZE"] = 4
    tenants = QuartTenants(app)

    @app.get("/notes", host=tenants.host)
    async def count():
        async with tenant_connection() as connection:
            return {"version": VERSION, "notes": await connection.fetchval("SELECT count(*) FROM notes")}

    @app.get("/way", host=tenants.host)
    async def say_way():
        return {"plain": app.asgi_http_class is ASGIHTTPConnection}

    @app.post("/sign-up/<slug>", host=tenants.apex_host)
    async def sign_up(slug):
        async def write_first_note(connection):
            await connection.execute("INSERT INTO notes (body) VALUES ($1)", f"welcome to {slug}")

        await tenants.create(slug, fill=write_first_note)
        return {"url": url_for("count", tenant=slug, _external=True)}

    @app.post("/notes/<body>", host=tenants.host)
    async def write(body):
        async with tenant_connection() as connection:
            await connection.execute("INSERT INTO notes (body) VALUES ($1)", body)
        return {"version": VERSION}

    return app


def broken():
    raise ValueError("no notes today")


app = create_app()
without_tenants = Quart(__name__)
'''
TABLE = "CREATE TABLE notes (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text NOT NULL);\n"


async def write_notes_app(folder: Path, database_url: str) -> None:
    """Write the app `notes` into *folder*, and give its empty database the tenants acme and globex."""
    (folder / "migrations").mkdir()
    (folder / "migrations" / "0001_notes.sql").write_text(TABLE)
    (folder / "notes.py").write_text(NOTES)
    settings = Settings(database_url=database_url, migrations_dir=folder / "migrations")
    async with await Database.open(settings, max_size=1) as database:
        await init_registry(database)
        for slug in ("acme", "globex"):
            await create_tenant(database, parse_slug(slug), slug, settings=settings)


@contextmanager
def serving(folder: Path, environment: dict[str, str], *command: str) -> Iterator[Server]:
    """Run *command*, by default `serve --app notes`, in the app's folder."""
    command = command or ("serve", "--app", "notes", "--config", "hypercorn.toml")
    log = folder / "log"
    with run_warm_program(*command, log=log, cwd=folder, **environment) as process:
        port = int(wait_for_line(process, "serving on", log).rpartition(":")[2])
        yield Server(process, port, log)


def change_version(folder: Path, version: int) -> None:
    """Deploy another version of the app.

    Each version has a size of its own. Python takes a compiled module for current if the source has the same size and
    was written in the same second, and a fast machine deploys twice in one second.
    """
    (folder / "notes.py").write_text(NOTES.replace("VERSION = 1", f"VERSION = {version}  #{'.' * version}"))


async def list_notes(database_url: str, slug: str) -> list[str]:
    """Return the texts of a tenant's notes."""
    connection = await asyncpg.connect(database_url)
    try:
        return [row["body"] for row in await connection.fetch(f"SELECT body FROM {slug}.notes ORDER BY id")]
    finally:
        await connection.close()
