"""Migrate a fleet in a test: a folder of migrations, and what became of the tenants."""

from collections.abc import Callable

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.fleet.fleet_plan import plan_fleet
from quart_tenants.postgres.fleet.migrate_fleet import FleetReport, migrate_fleet
from quart_tenants.postgres.registry.registry_tables import list_tenants
from quart_tenants.settings import Settings

ALL = ["acme", "company1", "company2", "globex"]
NO_TRANSACTION = "-- quart-tenants: no transaction\n"

Add = Callable[[str, str], None]
"""Adds a migration by its name and text."""


async def migrate(database: Database, settings: Settings, **options: object) -> FleetReport:
    """Plan and migrate, as the command does."""
    of_plan = {name: options.pop(name) for name in ("slugs", "to", "canary") if name in options}
    plan = await plan_fleet(database, settings=settings, **of_plan)  # type: ignore[arg-type]
    return await migrate_fleet(database, plan, settings=settings, **options)  # type: ignore[arg-type]


async def read_versions(database: Database) -> dict[str, int]:
    """Return where each tenant stands, by the registry."""
    return {tenant.slug: tenant.version for tenant in await list_tenants(database)}


async def list_with_column(database: Database, table: str, column: str) -> list[str]:
    """Return the schemas whose *table* has *column*."""
    async with database.connection() as connection:
        rows = await connection.fetch(
            "SELECT table_schema FROM information_schema.columns WHERE table_name = $1 AND column_name = $2"
            " ORDER BY table_schema",
            table,
            column,
        )
    return [row["table_schema"] for row in rows]
