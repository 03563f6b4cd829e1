"""Find names that are in a tenant's schema and in a shared one.

The path of a tenant's block has both schemas. If the tenant's table is dropped, the same query reads the shared table,
and nobody notices. So such a name is refused before that can happen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from quart_tenants.connection import Connection
from quart_tenants.errors import SharedNameError
from quart_tenants.long_lists import name_some
from quart_tenants.postgres.driver.connection_types import DriverConnection
from quart_tenants.resources import read_statement
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName

SHARED_LOCK_KEY = 126892148680036
"""Of the advisory lock on the shared schemas. The number is arbitrary: "shared" as bytes.

Whoever changes the shared schemas has it alone. Whoever makes a tenant's tables shares it until the commit. Otherwise
each of two transactions could make the same name, and neither would see the other's.
"""

SHARE_LOCK = f"SELECT pg_catalog.pg_advisory_xact_lock_shared({SHARED_LOCK_KEY})"
"""Takes that lock until the end of the transaction, together with others who make tenants' tables."""


@dataclass(frozen=True, slots=True)
class SharedName:
    """A name that is in a tenant's schema and in a shared one.

    Attributes:
        schema: The tenant's schema.
        kind: Such as `relation`, `type` or `routine`.
        name: The name.
        shared_schema: The shared schema.
    """

    schema: str
    kind: str
    name: str
    shared_schema: str


async def list_shared_names(
    connection: Connection | DriverConnection, schemas: Sequence[str] | None = None, *, settings: Settings
) -> list[SharedName]:
    """Return the names that are in one of *schemas* and in a shared schema, by one query.

    Args:
        connection: Any connection to the database.
        schemas: Schemas of tenants; None for those of all tenants outside the trash.
        settings: They name the shared schemas.
    """
    if not settings.shared_schemas:
        return []
    rows = await connection.fetch(read_statement("list_shared_names"), settings.shared_names, schemas)
    return [SharedName(row["schema_name"], row["kind"], row["name"], row["shared_schema"]) for row in rows]


async def refuse_shared_names(
    connection: Connection | DriverConnection, schema: SchemaName | None = None, *, settings: Settings
) -> None:
    """Make sure that no name is in *schema* and in a shared schema. None stands for the schemas of all tenants.

    With a *schema*, nobody changes the shared schemas until the caller's transaction ends.

    Raises:
        SharedNameError: One is.
    """
    if schema is not None and settings.shared_schemas:
        await connection.execute(SHARE_LOCK)
    found = await list_shared_names(connection, None if schema is None else [schema.name], settings=settings)
    if found:
        raise SharedNameError(describe_shared_names(found))


def describe_shared_names(found: Sequence[SharedName]) -> str:
    """Return a sentence that names some of *found*, and what to do."""
    names = name_some([f"{one.kind} {one.name} of schema {one.schema}" for one in found])
    where = ", ".join(dict.fromkeys(one.shared_schema for one in found))
    return f"names of tenants that are also in the shared schema {where}: {names}; give one of each two another name"
