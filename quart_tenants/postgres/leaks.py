"""Find in the server's catalogue what would let one tenant see another one's rows. Cheap: no probes."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from quart_tenants.errors import LeakError
from quart_tenants.postgres.database import Database
from quart_tenants.postgres.long_lists import name_some
from quart_tenants.postgres.registry_tables import check_registry
from quart_tenants.postgres.role_setup import DO_NOT_LOOP, list_open_doors, list_without_wall
from quart_tenants.postgres.roles import RUN_INIT, find_owner
from quart_tenants.settings import Settings

if TYPE_CHECKING:
    from quart_tenants.postgres.block import Connection

OLDEST_SERVER = 150000
"""As the server writes its version; PostgreSQL 15."""

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
        RegistryNotReadyError: There is no registry yet.
    """
    leaks = [finding for finding in await find_leaks(database, settings=settings) if finding.state is State.LEAK]
    if leaks:
        told = "; ".join(f"{leak.check}: {leak.seen}; {leak.remedy}" for leak in leaks)
        raise LeakError(f"{told} (the command doctor tells all)")


async def find_leaks(database: Database, *, settings: Settings) -> list[Finding]:
    """Return what the catalogue tells about the walls between tenants, one finding a check. A few round trips.

    Raises:
        RegistryNotReadyError: There is no registry yet.
        DatabaseUnavailableError: The database cannot be reached.
    """
    async with database.plain_session() as connection:
        default_path = await connection.fetchval(_GET_DEFAULT_PATH)
    findings = [_judge_path(default_path)]
    async with database.connection() as block:
        await check_registry(block)
        await block.execute(DO_NOT_LOOP)
        login = await block.fetchrow(_LOOK_AT_LOGIN)
        strangers = await block.fetch(_LIST_STRANGERS)
        if login is not None:
            findings += _judge_login(login["login"], mighty=login["rolsuper"] or login["rolbypassrls"])
            findings.append(_judge_public(login["public_open"]))
        findings.append(_judge_strangers([(row["schema_name"], row["grantee"], row["leak"]) for row in strangers]))
        if settings.role_per_tenant:
            findings += await _look_at_walls(block)
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


async def _look_at_walls(connection: "Connection") -> list[Finding]:
    owner = await find_owner(connection)
    look = None if owner is None else await connection.fetchrow(_LOOK_AT_OWNER, owner.name)
    if owner is None or look is None or not look["exists"]:
        return [Finding("tenants' roles", State.LEAK, "they are not set up in this server", RUN_INIT)]
    if not look["member"]:
        remedy = f"GRANT {owner.quoted} TO the role in the URL"
        return [Finding("tenants' roles", State.LEAK, f"this role is no member of {owner}", remedy)]
    findings = []
    if look["mighty"]:
        remedy = f"ALTER ROLE {owner.quoted} NOSUPERUSER NOBYPASSRLS"
        findings.append(Finding("owner", State.LEAK, f"{owner} is a superuser, or has BYPASSRLS", remedy))
    without = await list_without_wall(connection, owner)
    holes: list[str] = [tenant.slug for tenant in without if tenant.open]
    if holes:
        seen = f"without a role, or with a schema of another owner: {name_some(holes)}"
        findings.append(Finding("tenants' roles", State.LEAK, seen, RUN_INIT))
    elif without:
        seen = f"something in their schemas has another owner: {name_some([tenant.slug for tenant in without])}"
        findings.append(Finding("tenants' roles", State.WARNING, seen, RUN_INIT))
    else:
        findings.append(Finding("tenants' roles", State.OK, f"every tenant has its role, and {owner} owns all schemas"))
    doors = await list_open_doors(connection, owner)
    if doors:
        remedy = f"let a superuser run once: {'; '.join(doors)}"
        seen = "the tenants' roles may run set_config(), make temporary tables or the like"
        findings.append(Finding("everybody's rights", State.LEAK, seen, remedy))
    else:
        findings.append(Finding("everybody's rights", State.OK, "set_config(), temporary tables and the like are shut"))
    return findings
