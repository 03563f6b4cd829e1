"""Find what lies outside a tenant's schema and depends on it, before the schema is dropped or moved away."""

from collections.abc import Sequence
from dataclasses import dataclass

from quart_tenants.connection import Connection
from quart_tenants.errors import DependentsError
from quart_tenants.long_lists import name_some
from quart_tenants.resources import read_statement
from quart_tenants.tenant import SchemaName, Slug


@dataclass(frozen=True, slots=True)
class Dependent:
    """Something outside a schema that would go with it.

    Attributes:
        kind: Such as `view` or `table column`.
        identity: Its name, as PostgreSQL writes it.
        removal: The statement that drops it if it holds nobody's data, as a view and a foreign key do; else None.
    """

    kind: str
    identity: str
    removal: str | None

    def __str__(self) -> str:
        return f"{self.kind} {self.identity}"


async def list_dependents(
    connection: Connection, schema: SchemaName, relations: Sequence[int] | None = None
) -> list[Dependent]:
    """Return what outside *schema* `DROP SCHEMA … CASCADE` would drop, first what nobody may drop.

    Args:
        connection: A block that sees the catalogue.
        schema: The schema.
        relations: Numbers of relations in *schema*, if only these are dropped.
    """
    rows = await connection.fetch(read_statement("list_dependents"), schema.name, relations)
    return [Dependent(row["kind"], row["identity"], row["removal"]) for row in rows]


async def check_dependents(
    connection: Connection, slug: Slug, schema: SchemaName, *, including: bool, relations: Sequence[int] | None = None
) -> Sequence[Dependent]:
    """Return what outside the schema of the tenant *slug* may be dropped with it.

    Args:
        connection: A block that sees the catalogue.
        slug: The slug of the tenant, for the error.
        schema: Its schema.
        including: Whether what holds nobody's data may be dropped.
        relations: Numbers of relations in *schema*, if only these are dropped.

    Raises:
        DependentsError: There is something else, or there is something and *including* is false.
    """
    dependents = await list_dependents(connection, schema, relations)
    kept = [dependent for dependent in dependents if dependent.removal is None]
    if kept or (dependents and not including):
        raise DependentsError(slug, name_some([str(one) for one in kept or dependents]), removable=not kept)
    return dependents


async def remove_dependents(
    connection: Connection, slug: Slug, schema: SchemaName, *, including: bool, relations: Sequence[int] | None = None
) -> None:
    """Drop what `check_dependents` returns, in the transaction of *connection*.

    Raises:
        DependentsError: As `check_dependents` does.
    """
    for dependent in await check_dependents(connection, slug, schema, including=including, relations=relations):
        await connection.execute(str(dependent.removal))
