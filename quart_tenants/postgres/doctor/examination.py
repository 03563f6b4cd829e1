"""Run all checks of `doctor`: those of the catalogue, and attacks from one probe tenant on another."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import asyncpg

from quart_tenants.errors import DatabaseUnavailableError, RolesNotReadyError, TenantError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.doctor.catalogue_checks import (
    TENANTS_ROLES,
    Finding,
    State,
    find_leaks,
    judge,
    list_problem,
)
from quart_tenants.postgres.doctor.cluster_checks import check_cluster
from quart_tenants.postgres.doctor.fleet_tasks import check_fleet
from quart_tenants.postgres.doctor.probe_tenants import alternate, attack, find_session_leaks, make_probes
from quart_tenants.postgres.doctor.session_checks import find_own_session, find_pooler
from quart_tenants.postgres.driver.refusals import describe_refusal
from quart_tenants.postgres.fleet.status import get_fleet_status
from quart_tenants.postgres.registry.registry_tables import unready_explained
from quart_tenants.settings import Settings

_OLDEST_SERVER = 150000  # PostgreSQL 15, in the server's own form
_CLOSE = 60.0  # seconds; what `purge` and sessions take for the same time
_LONGEST_RUN = 100.0  # seconds; the next run removes what a killed run has left, a little later than this

_GET_VERSION = """
SELECT
    pg_catalog.current_setting('server_version') AS server,
    pg_catalog.current_setting('server_version_num')::integer AS number,
    extract(epoch FROM pg_catalog.clock_timestamp())::float8 AS seconds
"""
_LIST_PATH_SETTINGS = """
SELECT coalesce(r.rolname::text, 'all roles') || ': ' || s.setting AS setting
FROM pg_catalog.pg_db_role_setting AS d
LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = d.setrole
LEFT JOIN pg_catalog.pg_database AS b ON b.oid = d.setdatabase
CROSS JOIN LATERAL pg_catalog.unnest(d.setconfig) AS s (setting)
WHERE (d.setdatabase = 0 OR b.datname = pg_catalog.current_database())
    AND (d.setrole = 0 OR r.rolname = session_user)
    AND pg_catalog.starts_with(s.setting, 'search_path=') AND s.setting NOT IN ('search_path=', 'search_path=""')
"""
# Ways for SQL to leave the database or its role, also from a tenant's block. $1 the shared schemas.
_LIST_WAYS_OUT = """
SELECT 'extension ' || extname::text AS way FROM pg_catalog.pg_extension
WHERE extname IN ('dblink', 'postgres_fdw', 'file_fdw', 'adminpack', 'plpython3u', 'plperlu', 'pltclu')
UNION ALL
SELECT 'function ' || p.oid::pg_catalog.regprocedure::text || ' (SECURITY DEFINER)'
FROM pg_catalog.pg_namespace AS n
JOIN pg_catalog.pg_depend AS d
    ON d.refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass AND d.refobjid = n.oid
    AND d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass
JOIN pg_catalog.pg_proc AS p ON p.oid = d.objid AND p.prosecdef
WHERE n.nspname = ANY ($1::text[])
    OR EXISTS (SELECT FROM quart_tenants.tenants AS t WHERE t.schema_name = n.nspname)
"""


async def examine(database: Database, *, settings: Settings) -> AsyncIterator[Finding]:
    """Yield the finding of each check as soon as it is known.

    It makes two schemas named quart_tenants_probe_… and removes them. Two clients take turns in them, through the same
    pooler as the app; the *database* of one connection is one of the clients.

    Args:
        database: It has one connection.
        settings: The settings of the app.

    Raises:
        DatabaseUnavailableError: The database cannot be reached.
    """
    async with database.connection() as connection:
        (version,) = await connection.fetch(_GET_VERSION)
        apart = time.time() - version["seconds"]
    too_old = f"PostgreSQL {version['server']} is too old" if version["number"] < _OLDEST_SERVER else ""
    yield judge("server", too_old, f"PostgreSQL {version['server']}", "use PostgreSQL 15 or newer", State.FAILED)
    far = f"this machine's is {abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'} the server's"
    remedy = "let both machines take the time from the network"
    yield judge("clocks", far if abs(apart) > _CLOSE else "", "as on the server", remedy, State.WARNING)
    try:
        findings = await find_leaks(database, settings=settings)
    except TenantError as error:
        yield Finding("registry", State.FAILED, str(error), "see above; nothing else was tried")
        return
    yield Finding("registry", State.OK, "as new as this program")
    for finding in findings:
        yield finding
    for finding in await _examine_fleet(database, settings):
        yield finding
    async with database.connection() as connection:
        of_cluster = await check_cluster(connection, settings=settings)
        paths = [row["setting"] for row in await connection.fetch(_LIST_PATH_SETTINGS)]
        ways = []
        if settings.role_per_tenant:
            ways = [row["way"] for row in await connection.fetch(_LIST_WAYS_OUT, settings.shared_names)]
    for finding in of_cluster:
        yield finding
    if paths:
        seen = list_problem("a connection that does not ask for a path gets one", paths)
        remedy = "ALTER ROLE or ALTER DATABASE … SET search_path = ''"
        yield Finding("path settings", State.WARNING, seen, remedy)
    if ways:
        remedy = "drop what you do not need, or REVOKE it from PUBLIC"
        yield Finding("ways out", State.WARNING, list_problem("these run with other rights", ways), remedy)
    yield await find_own_session(settings)
    no_roles = any(finding.check == TENANTS_ROLES and finding.state is State.LEAK for finding in findings)
    for finding in await _probe(database, settings, no_roles=no_roles):
        yield finding


async def _examine_fleet(database: Database, settings: Settings) -> list[Finding]:
    # Without the drift, which takes minutes in a large fleet: `status` tells it.
    try:
        with unready_explained():
            status = await get_fleet_status(database, settings=settings, drift=False)
            return await check_fleet(database, status, settings=settings)
    except DatabaseUnavailableError:
        raise
    except TenantError as error:
        return [Finding("state of the tenants", State.FAILED, str(error), "see what `quart-tenants status` says")]


async def _probe(database: Database, settings: Settings, *, no_roles: bool) -> list[Finding]:
    findings = []
    try:
        async with asyncio.timeout(_LONGEST_RUN), AsyncExitStack() as stack:
            probes = await stack.enter_async_context(make_probes(database, settings=settings))
            second = await stack.enter_async_context(await Database.open(settings, max_size=1))
            seen, (ours, theirs) = await alternate((database, second), probes)
            how = "on shared server processes" if ours & theirs else "each client on a server process of its own"
            findings.append(
                judge(
                    "blocks",
                    list_problem(f"a block saw another tenant's row ({how})", seen),
                    f"no block saw another tenant's row, after errors and cancellations, too ({how})",
                    "do not serve through this URL; say so to the authors of quart-tenants and of the pooler",
                )
            )
            findings.append(await find_pooler(database, shared=bool(ours & theirs)))
            if settings.role_per_tenant:
                findings.append(
                    judge(
                        "role isolation",
                        list_problem("a tenant's role gets through", await attack(database, *probes)),
                        "a tenant's role reaches neither another tenant nor the registry, and creates nothing",
                        "quart-tenants init",
                    )
                )
            # Before the pooler's other clients are asked: a pool of one has no second connection to give.
            setting, prepared = await find_session_leaks(database)
            findings += [
                judge(
                    "session settings",
                    "a pooler shares sessions here: what one client SETs reaches another one" if setting else "",
                    "what one client SETs does not reach another one",
                    "our blocks do not use session settings; do not use any in yours: SET LOCAL",
                    State.WARNING,
                ),
                judge(
                    "prepared statements",
                    "one client's prepared statements reach another one, and may run in its place" if prepared else "",
                    "one client's do not reach another one",
                    "none needed: behind a pooler our connections keep no prepared statements",
                    State.WARNING,
                ),
            ]
    except (asyncpg.InsufficientPrivilegeError, RolesNotReadyError) as error:
        reason = describe_refusal(error) if isinstance(error, asyncpg.PostgresError) else str(error)
        remedy = "run doctor with the URL that makes tenants, through the same pooler"
        if no_roles and isinstance(error, RolesNotReadyError):
            reason, remedy = "the tenants' roles are not ready", f"see {TENANTS_ROLES} above"
        findings.append(Finding("probes", State.WARNING, f"not tried: {reason}", remedy))
    except asyncpg.PostgresError as error:
        remedy = "see the server's log; if a pooler is in between, try a URL that leads straight to the server"
        findings.append(Finding("probes", State.FAILED, f"a block failed: {describe_refusal(error)}", remedy))
    except TimeoutError:
        remedy = "try again when there is less to do"
        findings.append(Finding("probes", State.FAILED, "the probes took too long", remedy))
    return findings
