"""A backup to restore."""

from pathlib import Path

import pytest

from quart_tenants.postgres.backups.backup import backup_tenant
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.settings import Settings
from quart_tenants.tenant import Tenant
from tests.postgres.backups.parts import ACME, GLOBEX, fill


@pytest.fixture
async def backup_file(database: Database, settings: Settings, acme: Tenant, tmp_path: Path) -> Path:
    """A backup of acme with two users."""
    await fill(database, acme, "INSERT INTO app_user (username, password) VALUES ('a', 'hash a'), ('b', 'hash b')")
    file = tmp_path / "acme.tar"
    await backup_tenant(database, ACME, file, settings=settings)
    return file


@pytest.fixture
async def dump_file(database: Database, settings: Settings, globex: Tenant, tmp_path: Path) -> Path:
    """A backup of globex, which has a table that no migration made: so pg_dump has written it."""
    await fill(database, globex, "CREATE TABLE by_hand (id integer); INSERT INTO by_hand VALUES (1)")
    file = tmp_path / "globex.tar"
    await backup_tenant(database, GLOBEX, file, settings=settings)
    return file
