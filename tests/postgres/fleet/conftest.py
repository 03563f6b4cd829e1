"""A folder of migrations that grows, and settings that name it."""

from pathlib import Path

import pytest

from quart_tenants.resources import get_resource_path
from quart_tenants.settings import Settings
from tests.postgres.fleet.parts import Add


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of migrations with the one that all tenants have."""
    (path := tmp_path / "migrations").mkdir()
    first = get_resource_path("sql/tenant/0001_users_and_data.sql")
    (path / first.name).write_bytes(first.read_bytes())
    return path


@pytest.fixture
def settings(database_url: str, folder: Path) -> Settings:
    """Settings for `database_url` and `folder`: quick, and still with several tries."""
    return Settings(
        database_url=database_url,
        pool_max_size=5,
        migrations_dir=folder,
        migration_lock_timeout=0.05,
        migration_attempts=2,
    )


@pytest.fixture
def add(folder: Path) -> Add:
    """Add a migration."""

    def write(name: str, sql: str) -> None:
        (folder / name).write_text(sql)

    return write
