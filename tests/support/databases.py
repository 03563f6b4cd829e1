"""Databases for tests: a template made once, cloned for each test."""

from pathlib import Path

import asyncpg

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import init_registry
from quart_tenants.postgres.tenants.provisioning import create_tenant
from quart_tenants.postgres.tenants.purge import purge_trash
from quart_tenants.postgres.tenants.trash import drop_tenant
from quart_tenants.resources import get_resource_path
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, parse_slug

ISOLATION_TENANTS = ("acme", "globex")
DEMO_TENANTS = ("company1", "company2")
REFERENCE_FILES = get_resource_path("sql/tenant")
"""The migrations of the reference app, which make the tables of most tests."""
DEMO_SQL = Path(__file__).parents[2] / "sql" / "demo"

# What `init` of a newer program does, whose file of the registry is the next one.
NEWER_REGISTRY = """
INSERT INTO quart_tenants.applied_migrations
SELECT schema_name, max(version) + 1, 'newer', 'newer' FROM quart_tenants.applied_migrations
WHERE schema_name = 'quart_tenants' GROUP BY schema_name
"""
# The same, where programs that do not know that file would read the registry wrongly.
BREAKING_REGISTRY = (
    "UPDATE quart_tenants.oldest_reader SET migration = "
    "(SELECT max(version) FROM quart_tenants.applied_migrations WHERE schema_name = 'quart_tenants')"
)


async def execute(url: str, *statements: str) -> None:
    """Run *statements* on a connection of their own, as the role in *url*."""
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def set_default(url: str, name: str, value: str) -> None:
    """Let new sessions of the database at *url* begin with a setting."""
    await execute(
        url, f"DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET {name} TO %L', current_database(), '{value}'); END $$"
    )


async def drop_for_good(database: Database, slug: Slug) -> None:
    """Drop and purge a tenant, and let that be long ago, so that its name is free."""
    await drop_tenant(database, slug)
    await purge_trash(database, settings=Settings(migrations_dir=REFERENCE_FILES), slugs=[slug])
    await let_names_rest(database)


async def let_names_rest(database: Database) -> None:
    """Let it be long ago that tenants were dropped, so that their names are free."""
    async with database.connection() as connection:
        await connection.execute("UPDATE quart_tenants.resting_names SET free_at = free_at - interval '1 day'")


async def fill_template(url: str) -> None:
    """Make the registry, two empty tenants for the isolation tests and the two companies of the seed."""
    settings = Settings(migrations_dir=REFERENCE_FILES, database_url=url)
    async with await Database.open(settings, max_size=1) as database:
        await init_registry(database)
        for slug in ISOLATION_TENANTS:
            await create_tenant(database, parse_slug(slug), slug.title(), settings=settings)
        for slug in DEMO_TENANTS:
            first_rows = (DEMO_SQL / f"{slug}.sql").read_text(encoding="utf-8")
            await create_tenant(database, parse_slug(slug), slug, settings=settings, first_rows=first_rows)
