"""Take a tenant that was made in advance: a schema with all tables, which belongs to nobody yet."""

import hashlib
import json
from collections.abc import Sequence

from quart_tenants.connection import Connection
from quart_tenants.postgres.migrations.migration_files import SHARED_LEDGER, Migration, list_applied
from quart_tenants.postgres.roles.owner_role import find_owner
from quart_tenants.postgres.tenants.schema_moves import move_schema
from quart_tenants.settings import Settings
from quart_tenants.tenant import REGISTRY_SCHEMA, RoleName, SchemaName

# Two sign-ups at once never get the same one: the second does not see a row that the first has locked. $1 the recipe.
_TAKE = """
DELETE FROM quart_tenants.ready_schemas WHERE id = (
    SELECT r.id
    FROM quart_tenants.ready_schemas AS r
    -- Somebody may have dropped the schema by hand.
    JOIN pg_catalog.pg_namespace AS n ON n.nspname = ('quart_tenants_ready_' || r.id)::name
    WHERE r.recipe = $1 ORDER BY r.id LIMIT 1 FOR UPDATE OF r SKIP LOCKED
)
RETURNING id
"""
_COUNT = """
SELECT count(*)
FROM quart_tenants.ready_schemas AS r
JOIN pg_catalog.pg_namespace AS n ON n.nspname = ('quart_tenants_ready_' || r.id)::name
WHERE r.recipe = $1
"""


def name_ready(number: int) -> SchemaName:
    """Return the name of a ready schema. No tenant's schema is called so."""
    return SchemaName(f"{REGISTRY_SCHEMA}_ready_{number}")


async def find_recipe(
    connection: Connection, migrations: Sequence[Migration], owner: RoleName | None, *, settings: Settings
) -> str:
    """Return a digest of all that a new tenant's schema is made from. Only a ready schema of the same digest is taken.

    Args:
        connection: Inside a block.
        migrations: The tenants' files.
        owner: The owner role if each tenant has a role.
        settings: They name the shared schemas.
    """
    shared = await list_applied(connection, SHARED_LEDGER) if settings.shared_schemas else {}
    parts = (
        [(migration.name, migration.sha256) for migration in migrations],
        settings.shared_names,
        sorted(shared.items()),
        owner and owner.name,
    )
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


async def count_ready(connection: Connection, migrations: Sequence[Migration], *, settings: Settings) -> int:
    """Return how many ready schemas there are that a new tenant could take."""
    owner = await find_owner(connection) if settings.role_per_tenant else None
    count: int = await connection.fetchval(_COUNT, await find_recipe(connection, migrations, owner, settings=settings))
    return count


async def take_ready(
    connection: Connection,
    schema: SchemaName,
    migrations: Sequence[Migration],
    owner: RoleName | None,
    *,
    settings: Settings,
) -> bool:
    """Rename a ready schema to *schema*, in the transaction of *connection*, and return whether there was one.

    The tenant's role gets no rights yet. For the arguments see `find_recipe`.

    Raises:
        SchemaExistsError: There is a schema of that name.
    """
    if not settings.ready_tenants:
        return False
    number = await connection.fetchval(_TAKE, await find_recipe(connection, migrations, owner, settings=settings))
    if number is None:
        return False
    await move_schema(connection, name_ready(number), schema)
    return True
