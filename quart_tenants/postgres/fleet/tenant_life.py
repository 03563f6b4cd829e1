"""Tell what the registry knows of one tenant, in the trash or not: its state, what happened to it, ended sessions."""

from dataclasses import dataclass
from datetime import datetime

from quart_tenants.connection import Row
from quart_tenants.errors import UnknownTenantError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.fleet.tenant_search import SchemaSize, measure_schemas
from quart_tenants.postgres.registry.registry_tables import check_registry
from quart_tenants.tenant import SchemaName, Slug

_MOST = 100
"""Of what happened, the newest."""

_FIND = """
SELECT
    t.id, t.slug, t.schema_name, t.display_name, t.created_at, t.suspended_at, t.dropped_at,
    t.purge_began_at IS NOT NULL AS half_purged,
    coalesce(
        (SELECT max(a.version) FROM quart_tenants.applied_migrations AS a WHERE a.schema_name = t.schema_name), 0
    ) AS version,
    f.reason, f.migration, f.failed_at, f.version AS failed_version
FROM quart_tenants.tenants AS t
LEFT JOIN quart_tenants.migration_failures AS f ON f.tenant_id = t.id
WHERE t.slug = $1
"""
_LIST_APPLIED = """
SELECT name, applied_at FROM quart_tenants.applied_migrations WHERE schema_name = $1 ORDER BY version DESC LIMIT $2
"""
_LIST_FORMER = "SELECT slug, redirect_until FROM quart_tenants.former_slugs WHERE tenant_id = $1 ORDER BY slug"
_LIST_DOMAINS = "SELECT domain, verified_at FROM quart_tenants.domains WHERE tenant_id = $1 ORDER BY domain"
_LIST_ENDED = """
SELECT username, session_id = '' AS all_of_them, ended_at FROM quart_tenants.ended_sessions
WHERE tenant_id = $1 ORDER BY ended_at DESC LIMIT $2
"""


@dataclass(frozen=True, slots=True)
class LifeEvent:
    """Something that happened to a tenant, in a few words."""

    at: datetime
    what: str


@dataclass(frozen=True, slots=True)
class EndedSession:
    """A session that was ended before its time.

    Attributes:
        username: Whose it was; empty for a visitor who was not logged in.
        all_of_them: Whether all sessions of that user were ended, and not one of them.
        ended_at: When.
    """

    username: str
    all_of_them: bool
    ended_at: datetime


@dataclass(frozen=True, slots=True)
class TenantLife:
    """What the registry knows of a tenant.

    Attributes:
        id: The registry's number.
        slug: Its subdomain.
        schema: The name of its schema.
        name: Its display name.
        version: The number of its newest migration.
        suspended_at: Since when it is suspended; None if it is not.
        dropped_at: Since when it is in the trash; None if it is not.
        half_purged: Whether its deletion has begun.
        failure: Why its last migration failed; None if it did not.
        former_slugs: Slugs that lead to it, each with the end of that.
        domains: Its own domains, each with the time of the proof; None where DNS has not proved it yet.
        events: What happened to it, the newest first, a hundred migrations at most.
        ended_sessions: The newest ended sessions, a hundred at most.
        size: How much is in its schema; None where a table is locked, so that it cannot be known now.
    """

    id: int
    slug: Slug
    schema: SchemaName
    name: str
    version: int
    suspended_at: datetime | None
    dropped_at: datetime | None
    half_purged: bool
    failure: str | None
    former_slugs: dict[str, datetime]
    domains: dict[str, datetime | None]
    events: tuple[LifeEvent, ...]
    ended_sessions: tuple[EndedSession, ...]
    size: SchemaSize | None


async def get_tenant_life(database: Database, slug: Slug) -> TenantLife:
    """Return what the registry knows of the tenant *slug*, which may be in the trash.

    Raises:
        UnknownTenantError: There is no such tenant, not even in the trash.
        RegistryNotReadyError: There is no registry yet.
    """
    async with database.connection() as connection:
        await check_registry(connection)
        row = await connection.fetchrow(_FIND, slug)
        if row is None:
            raise UnknownTenantError(slug)
        applied = await connection.fetch(_LIST_APPLIED, row["schema_name"], _MOST)
        former = {one["slug"]: one["redirect_until"] for one in await connection.fetch(_LIST_FORMER, row["id"])}
        domains = {one["domain"]: one["verified_at"] for one in await connection.fetch(_LIST_DOMAINS, row["id"])}
        ended = await connection.fetch(_LIST_ENDED, row["id"], _MOST)
    schema = SchemaName(row["schema_name"])
    sizes = await measure_schemas(database, [schema])
    # A failure is over when the tenant stands elsewhere.
    has_failed = row["failed_version"] == row["version"]
    return TenantLife(
        id=row["id"],
        slug=Slug(row["slug"]),
        schema=schema,
        name=row["display_name"],
        version=row["version"],
        suspended_at=row["suspended_at"],
        dropped_at=row["dropped_at"],
        half_purged=row["half_purged"],
        failure=row["reason"] if has_failed else None,
        former_slugs=former,
        domains=domains,
        events=_list_events(row, applied, domains),
        ended_sessions=tuple(EndedSession(one["username"], one["all_of_them"], one["ended_at"]) for one in ended),
        size=None if sizes is None else sizes.get(schema.name, SchemaSize()),
    )


def _list_events(row: Row, applied: list[Row], domains: dict[str, datetime | None]) -> tuple[LifeEvent, ...]:
    events = [LifeEvent(row["created_at"], "made")]
    events += [LifeEvent(one["applied_at"], f"migrated by {one['name']}") for one in applied]
    events += [LifeEvent(at, f"served at {domain}, too") for domain, at in domains.items() if at is not None]
    for at, what in (
        (row["failed_at"], f"failed to migrate by {row['migration'] or 'no file'}"),
        (row["suspended_at"], "suspended"),
        (row["dropped_at"], "dropped into the trash"),
    ):
        if at is not None:
            events.append(LifeEvent(at, what))
    return tuple(sorted(events, key=lambda event: event.at, reverse=True))
