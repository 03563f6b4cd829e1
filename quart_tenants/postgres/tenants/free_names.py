"""Find out whether a name is free for a new tenant, and if not, why."""

from collections.abc import Collection, Mapping

from quart_tenants.connection import Connection, Row
from quart_tenants.errors import (
    FormerSlugError,
    InvalidSchemaNameError,
    InvalidSlugError,
    RecentlyDroppedError,
    SchemaExistsError,
    TenantError,
    TenantExistsError,
    TenantInTrashError,
)
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import check_registry
from quart_tenants.postgres.registry.resting_names import find_resting
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName, Slug, parse_schema_name

# Lists for each slug ($1) and its schema ($2) why it cannot be a new tenant's. Resting names are not looked at here.
_FIND_OBSTACLES = """
SELECT
    x.slug,
    x.schema_name,
    s.id IS NOT NULL AND s.dropped_at IS NOT NULL AS in_trash,
    coalesce(s.slug, h.slug) AS taken_by,
    coalesce(s.schema_name, h.schema_name) AS taken_schema,
    now_called.slug AS renamed_to,
    to_char(f.redirect_until, 'YYYY-MM-DD HH24:MI TZ') AS redirect_until,
    n.oid IS NOT NULL AS schema_exists
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS x (slug, schema_name, number)
LEFT JOIN quart_tenants.tenants AS s ON s.slug = x.slug
LEFT JOIN quart_tenants.tenants AS h ON h.schema_name = x.schema_name
LEFT JOIN quart_tenants.former_slugs AS f ON f.slug = x.slug AND f.redirect_until > now()
LEFT JOIN quart_tenants.tenants AS now_called ON now_called.id = f.tenant_id
LEFT JOIN pg_catalog.pg_namespace AS n ON n.nspname = x.schema_name
ORDER BY x.number
"""


async def find_obstacles(database: Database, slugs: Collection[Slug], *, settings: Settings) -> dict[Slug, TenantError]:
    """Return for each of *slugs* that `create_tenant` would refuse its error, by one query.

    Raises:
        SharedNameError: A name is in the tenant's schema and in a shared one.
        RegistryNotReadyError: There is no registry yet.
    """
    obstacles: dict[Slug, TenantError] = {}
    for slug in slugs:
        try:
            check_not_reserved(slug, settings)
        except InvalidSlugError as error:
            obstacles[slug] = error
    async with database.connection() as connection:
        await check_registry(connection)
        found = await _list_obstacles(connection, {slug: parse_schema_name(slug) for slug in slugs}, settings)
    return dict(found) | obstacles


async def check_free(
    connection: Connection, schemas: Mapping[Slug, SchemaName | None], settings: Settings, *, new_schema: bool = True
) -> None:
    """Make sure that these slugs and schemas are free for new tenants.

    Args:
        connection: Inside a block.
        schemas: The schemas by slug; None if only the slug matters.
        settings: They say how long a dropped name rests.
        new_schema: Whether the schemas must not exist.

    Raises:
        TenantExistsError, TenantInTrashError, FormerSlugError, RecentlyDroppedError, SchemaExistsError:
            The first slug of *schemas* that is not free, or its schema.
    """
    for _, error in await _list_obstacles(connection, schemas, settings, new_schema=new_schema):
        raise error


def check_not_reserved(slug: Slug, settings: Settings) -> None:
    """Raise `InvalidSlugError` if `TENANTS_RESERVED_SLUGS` keeps *slug* for the app itself."""
    if slug in settings.reserved_slugs:
        raise InvalidSlugError(slug, "the name is reserved", for_operators=" by TENANTS_RESERVED_SLUGS")


async def _list_obstacles(
    connection: Connection, schemas: Mapping[Slug, SchemaName | None], settings: Settings, *, new_schema: bool = True
) -> list[tuple[Slug, TenantError]]:
    """Return the error of each slug that is not free, in order of *schemas*."""
    rows = await connection.fetch(
        _FIND_OBSTACLES, list(schemas), [schema and schema.name for schema in schemas.values()]
    )
    # This comes second, because a name that becomes free in between rests.
    resting = await find_resting(connection, schemas, settings)
    obstacles = [
        (slug, _explain_obstacle(row, resting.get(slug), settings, new_schema=new_schema))
        for slug, row in zip(schemas, rows, strict=True)
    ]
    return [(slug, error) for slug, error in obstacles if error is not None]


def _explain_obstacle(
    row: Row, rest: RecentlyDroppedError | None, settings: Settings, *, new_schema: bool
) -> TenantError | None:
    if row["schema_name"] in settings.shared_names:
        return InvalidSchemaNameError(row["schema_name"], "TENANTS_SHARED_SCHEMAS shares it with all tenants")
    if row["in_trash"]:
        return TenantInTrashError(row["slug"])
    if row["taken_by"] == row["slug"]:
        return TenantExistsError(row["taken_by"], row["taken_schema"])
    if row["renamed_to"] is not None:
        return FormerSlugError(row["slug"], row["renamed_to"], row["redirect_until"])
    if row["taken_by"] is not None:
        return TenantExistsError(row["taken_by"], row["taken_schema"])
    if rest is not None:
        return rest
    if new_schema and row["schema_exists"]:
        return SchemaExistsError(row["schema_name"])
    return None
