"""Find in the server's catalogue what would let one tenant see another one's rows. Cheap: no probes."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from quart_tenants.errors import LeakError, RegistryNotReadyError
from quart_tenants.long_lists import name_some
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.fleet.role_setup import DO_NOT_LOOP, list_public_rights, list_without_role
from quart_tenants.postgres.registry.registry_tables import GRANT_REGISTRY, check_registry, unready_explained
from quart_tenants.postgres.roles.owner_role import RUN_INIT, find_owner
from quart_tenants.resources import read_statement
from quart_tenants.settings import Settings

if TYPE_CHECKING:
    from quart_tenants.postgres.driver.connection_types import Connection

OLDEST_SERVER = 150000
"""As the server writes its version; PostgreSQL 15."""

TENANTS_ROLES = "tenants' roles"
"""The check that the others with roles build on."""

_REGISTRY_RIGHTS = "registry's rights"

_GET_DEFAULT_PATH = "SELECT pg_catalog.current_schemas(false)::text[]"
_LOOK_AT_LOGIN = """
SELECT
    r.rolname::text AS login, r.rolsuper, r.rolbypassrls,
    pg_catalog.current_setting('server_version') AS server,
    pg_catalog.current_setting('server_version_num')::integer AS version,
    coalesce(
        (SELECT pg_catalog.has_schema_privilege('public', oid, 'CREATE') FROM pg_catalog.pg_namespace
         WHERE nspname = 'public'), false
    ) AS public_open
FROM pg_catalog.pg_roles AS r WHERE r.rolname = session_user
"""
# Who but its owner, the tenant's own role and we ourselves may look into the schemas of tenants and of the registry.
_LIST_STRANGERS = """
SELECT
    n.nspname::text AS schema_name,
    coalesce(g.rolname::text, 'PUBLIC') AS grantee,
    g.oid IS NULL OR EXISTS (SELECT FROM quart_tenants.tenants AS other WHERE other.role_name = g.rolname) AS leak
FROM pg_catalog.pg_namespace AS n
LEFT JOIN quart_tenants.tenants AS t ON t.schema_name = n.nspname
CROSS JOIN LATERAL pg_catalog.aclexplode(n.nspacl) AS x
LEFT JOIN pg_catalog.pg_roles AS g ON g.oid = x.grantee
WHERE (t.id IS NOT NULL OR n.nspname = 'quart_tenants')
    AND x.grantee <> n.nspowner AND x.privilege_type = 'USAGE'
    AND (g.oid IS NULL OR g.rolname IS DISTINCT FROM t.role_name AND g.rolname <> session_user)
ORDER BY 1, 2
"""
# Whoever serves writes both: without that every login would be an error.
_LIST_MISSING_RIGHTS = """
SELECT pg_catalog.format('%s on %s', r.name, t.name) AS missing
FROM (VALUES ('failed_logins'), ('ended_sessions')) AS t (name)
CROSS JOIN (VALUES ('SELECT'), ('INSERT'), ('UPDATE'), ('DELETE')) AS r (name)
WHERE NOT pg_catalog.has_table_privilege('quart_tenants.' || t.name, r.name)
"""
# $1 the owner. A superuser may enter every role.
_LOOK_AT_OWNER = """
SELECT
    r.oid IS NOT NULL AS exists,
    coalesce(r.rolsuper OR r.rolbypassrls, false) AS mighty,
    r.oid IS NOT NULL AND pg_catalog.pg_has_role(
        session_user, r.oid,
        CASE WHEN pg_catalog.current_setting('server_version_num')::integer >= 160000 THEN 'SET' ELSE 'MEMBER' END
    ) AS member
FROM (SELECT) AS once LEFT JOIN pg_catalog.pg_roles AS r ON r.rolname = $1
"""


class State(StrEnum):
    """What a check has come to."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    LEAK = "LEAK"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check saw.

    Attributes:
        check: Its name.
        state: What it came to. Failed: it could not be done, so nobody knows.
        seen: What was seen.
        remedy: What to do; empty where all is well.
    """

    check: str
    state: State
    seen: str
    remedy: str = ""


async def refuse_leaks(database: Database, *, settings: Settings) -> None:
    """Make sure that nothing in the server's catalogue would let one tenant see another one's rows.

    Raises:
        LeakError: Something would.
        RegistryNotReadyError: There is no registry yet, or it is not ours to write.
    """
    findings = await find_leaks(database, settings=settings)
    for finding in findings:
        if finding.check == _REGISTRY_RIGHTS and finding.state is State.FAILED:
            raise RegistryNotReadyError(f"{finding.seen}; {finding.remedy}")
    leaks = [finding for finding in findings if finding.state is State.LEAK]
    if leaks:
        told = "; ".join(f"{leak.check}: {leak.seen}; {leak.remedy}" for leak in leaks)
        raise LeakError(f"{told} (the command doctor tells all)")


async def find_leaks(database: Database, *, settings: Settings) -> list[Finding]:
    """Return what the catalogue tells about the walls between tenants, one finding a check. A few round trips.

    Raises:
        RegistryNotReadyError: There is no registry yet, or it is not ours to read.
        DatabaseUnavailableError: The database cannot be reached.
    """
    async with database.plain_session() as connection:
        default_path = await connection.fetchval(_GET_DEFAULT_PATH)
    findings = [_judge_path(default_path)]
    # Whoever may read one table of the registry may lack the right to another.
    with unready_explained():
        async with database.connection() as block:
            findings += await _look_at_catalogue(block, settings)
    return findings


async def _look_at_catalogue(block: "Connection", settings: Settings) -> list[Finding]:
    findings: list[Finding] = []
    await check_registry(block)
    await block.execute(DO_NOT_LOOP)
    login = await block.fetchrow(_LOOK_AT_LOGIN)
    missing = [row["missing"] for row in await block.fetch(_LIST_MISSING_RIGHTS)]
    strangers = await block.fetch(_LIST_STRANGERS)
    if login is not None:
        findings += _judge_login(login["login"], mighty=login["rolsuper"] or login["rolbypassrls"])
        findings.append(_judge_public(login["public_open"]))
    findings.append(_judge_rights(missing))
    findings.append(_judge_strangers([(row["schema_name"], row["grantee"], row["leak"]) for row in strangers]))
    if settings.role_per_tenant:
        findings += await _check_roles(block)
    else:
        findings.append(
            Finding(
                "role per tenant",
                State.WARNING,
                "TENANTS_ROLE_PER_TENANT is off: SQL that is built from what a visitor typed reaches every tenant",
                "switch it on, and run quart-tenants init",
            )
        )
    return findings


def _judge_path(schemas: list[str]) -> Finding:
    if not schemas:
        return Finding("default path", State.OK, "a new connection sees no schema")
    return Finding(
        "default path",
        State.LEAK,
        f"a new connection sees {name_some(schemas)}, though it asks for an empty search_path",
        "a pooler has dropped that: ALTER ROLE … SET search_path = '' for the role in the URL",
    )


def _judge_login(login: str, *, mighty: bool) -> list[Finding]:
    if not mighty:
        return [Finding("login role", State.OK, f"{login} is no superuser")]
    return [
        Finding(
            "login role",
            State.WARNING,
            f"{login} is a superuser, or has BYPASSRLS",
            "give the app a role of its own that owns the database, with CREATEROLE for roles per tenant",
        )
    ]


def _judge_public(public_open: bool) -> Finding:
    if not public_open:
        return Finding("schema public", State.OK, "not everybody may create in it")
    return Finding(
        "schema public",
        State.WARNING,
        "everybody may create tables and functions in it",
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
    )


def _judge_rights(missing: list[str]) -> Finding:
    if missing:
        return Finding(_REGISTRY_RIGHTS, State.FAILED, f"this role lacks {name_some(missing)}", GRANT_REGISTRY)
    return Finding(_REGISTRY_RIGHTS, State.OK, "this role may write what a login writes")


def _judge_strangers(strangers: list[tuple[str, str, bool]]) -> Finding:
    leaks = [f"{grantee} on {schema}" for schema, grantee, leak in strangers if leak]
    others = [f"{grantee} on {schema}" for schema, grantee, leak in strangers if not leak and schema != "quart_tenants"]
    remedy = "REVOKE ALL ON SCHEMA … FROM them"
    if leaks:
        return Finding("grants", State.LEAK, f"roles with USAGE that must not have it: {name_some(leaks)}", remedy)
    if others:
        return Finding(
            "grants", State.WARNING, f"other roles may look into tenants' schemas: {name_some(others)}", remedy
        )
    return Finding("grants", State.OK, "nobody else may look into the schemas of tenants and of the registry")


async def _check_roles(connection: "Connection") -> list[Finding]:
    owner = await find_owner(connection)
    look = None if owner is None else await connection.fetchrow(_LOOK_AT_OWNER, owner.name)
    if owner is None or look is None or not look["exists"]:
        return [Finding(TENANTS_ROLES, State.LEAK, "they are not set up in this server", RUN_INIT)]
    if not look["member"]:
        remedy = f"GRANT {owner.quoted} TO the role in the URL"
        return [Finding(TENANTS_ROLES, State.LEAK, f"this role is no member of {owner}", remedy)]
    findings = []
    if look["mighty"]:
        remedy = f"ALTER ROLE {owner.quoted} NOSUPERUSER NOBYPASSRLS"
        findings.append(Finding("owner", State.LEAK, f"{owner} is a superuser, or has BYPASSRLS", remedy))
    without = await list_without_role(connection, owner)
    holes: list[str] = [tenant.slug for tenant in without if tenant.open]
    strange: list[str] = [tenant.slug for tenant in without if not tenant.open]
    if holes:
        seen = f"without a role, or with a schema of another owner: {name_some(holes)}"
        findings.append(Finding(TENANTS_ROLES, State.LEAK, seen, RUN_INIT))
    if strange:
        seen = f"something in their schemas has another owner: {name_some(strange)}"
        remedy = f"let a superuser ALTER … OWNER TO {owner.quoted}, and {RUN_INIT}"
        findings.append(Finding("tenants' tables", State.WARNING, seen, remedy))
    if not without:
        findings.append(Finding(TENANTS_ROLES, State.OK, f"every tenant has its role, and {owner} owns all schemas"))
    strong = await connection.fetch(read_statement("list_strong_roles"))
    if strong:
        seen = f"some may more than work in their schemas: {name_some([row['seen'] for row in strong])}"
        remedy = f"let a superuser run: {name_some([row['remedy'] for row in strong])}"
        findings.append(Finding("roles' rights", State.LEAK, seen, remedy))
    else:
        findings.append(Finding("roles' rights", State.OK, "no tenant's role may more than work in its schema"))
    doors = await list_public_rights(connection, owner)
    remedy = f"let a superuser run once: {'; '.join(doors)}"
    if doors and not any(door.startswith("REVOKE") for door in doors):
        seen = f"this role or {owner} lacks set_config() or the like, which everybody else has lost"
        findings.append(Finding("everybody's rights", State.FAILED, seen, remedy))
    elif doors:
        seen = "the tenants' roles may run set_config(), make temporary tables or the like"
        findings.append(Finding("everybody's rights", State.LEAK, seen, remedy))
    else:
        findings.append(Finding("everybody's rights", State.OK, "set_config(), temporary tables and the like are shut"))
    return findings
