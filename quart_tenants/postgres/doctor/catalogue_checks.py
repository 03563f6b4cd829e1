"""Check in the server's catalogue whether one tenant could see another one's rows. Cheap: it makes no probes."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from quart_tenants.connection import Connection
from quart_tenants.errors import LeakError, RegistryNotReadyError
from quart_tenants.long_lists import name_some
from quart_tenants.postgres.blocks.block import list_path
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.fleet.role_setup import DO_NOT_LOOP, list_public_rights, list_without_role
from quart_tenants.postgres.registry.registry_tables import GRANT_REGISTRY, check_registry, unready_explained
from quart_tenants.postgres.roles.owner_role import RUN_INIT, find_owner, name_readers
from quart_tenants.postgres.shared.shared_access import check_shared_schemas, list_foreign_parts, list_shared_grants
from quart_tenants.postgres.shared.shared_names import describe_shared_names, list_shared_names
from quart_tenants.resources import read_statement
from quart_tenants.settings import Settings
from quart_tenants.tenant import REGISTRY_SCHEMA

TENANTS_ROLES = "tenants' roles"
"""The check on which the other checks of roles depend."""

_REGISTRY_RIGHTS = "registry's rights"

_LOOK_AT_LOGIN = """
SELECT
    r.rolname::text AS login, r.rolsuper, r.rolbypassrls,
    coalesce(
        (SELECT pg_catalog.has_schema_privilege('public', oid, 'CREATE') FROM pg_catalog.pg_namespace
         WHERE nspname = 'public'), false
    ) AS public_open
FROM pg_catalog.pg_roles AS r WHERE r.rolname = session_user
"""
# Lists roles that may look into the schemas of tenants, also of those made in advance, and of the registry, without the
# owner of the schema, the tenant's own role and the role that has logged in. $1 the role of all who read the shared
# schemas, or null.
_LIST_STRANGERS = """
SELECT
    n.nspname::text AS schema_name,
    coalesce(g.rolname::text, 'PUBLIC') AS grantee,
    g.oid IS NULL OR g.rolname = $1::text
    OR EXISTS (SELECT FROM quart_tenants.tenants AS other WHERE other.role_name = g.rolname) AS leak
FROM pg_catalog.pg_namespace AS n
LEFT JOIN quart_tenants.tenants AS t ON t.schema_name = n.nspname
CROSS JOIN LATERAL pg_catalog.aclexplode(n.nspacl) AS x
LEFT JOIN pg_catalog.pg_roles AS g ON g.oid = x.grantee
WHERE (t.id IS NOT NULL OR n.nspname = 'quart_tenants'
        OR pg_catalog.starts_with(n.nspname::text, 'quart_tenants_ready_'))
    AND x.grantee <> n.nspowner AND x.privilege_type = 'USAGE'
    AND (g.oid IS NULL OR g.rolname IS DISTINCT FROM t.role_name AND g.rolname <> session_user)
ORDER BY 1, 2
"""
# A worker writes both tables. Without that right every login would be an error.
_LIST_MISSING_RIGHTS = """
SELECT pg_catalog.format('%s on %s', r.name, t.name) AS missing
FROM (VALUES ('failed_logins'), ('ended_sessions')) AS t (name)
CROSS JOIN (VALUES ('SELECT'), ('INSERT'), ('UPDATE'), ('DELETE')) AS r (name)
WHERE NOT pg_catalog.has_table_privilege('quart_tenants.' || t.name, r.name)
"""
# $1 the owner role. A superuser may enter every role.
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
    """The result of a check."""

    OK = "ok"
    WARNING = "warning"
    TO_DO = "to do"
    FAILED = "failed"
    LEAK = "LEAK"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        check: The name of the check.
        state: Its result. FAILED means that the check could not be done, so that nobody knows. A WARNING is advice;
            TO_DO waits for an operator, and lets no tenant see another one's rows.
        seen: What was seen.
        remedy: What to do; empty if all is well.
    """

    check: str
    state: State
    seen: str
    remedy: str = ""


def judge(check: str, problem: str, fine: str, remedy: str, state: State = State.LEAK) -> Finding:
    """Return a finding in *state* with *problem* and *remedy*, or an OK with *fine* if *problem* is empty."""
    return Finding(check, state, problem, remedy) if problem else Finding(check, State.OK, fine)


def list_problem(sentence: str, names: Sequence[str]) -> str:
    """Return *sentence* with the first of *names*, or nothing if there are no names."""
    return f"{sentence}: {name_some(names)}" if names else ""


async def refuse_leaks(database: Database, *, settings: Settings) -> None:
    """Make sure that nothing in the server's catalogue lets one tenant see another one's rows.

    Raises:
        LeakError: Something does.
        RegistryNotReadyError: There is no registry yet, or this role may not write it.
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
    """Return one finding for each check of the catalogue. This takes a few round trips.

    Raises:
        RegistryNotReadyError: There is no registry yet, or this role may not read it.
        DatabaseUnavailableError: The database cannot be reached.
    """
    async with database.plain_session() as connection, connection.transaction():
        # A pooler may set it for each client. Then only a reset shows what the server has.
        await connection.execute("RESET search_path")
        path = await list_path(connection)
    # A role that may read one table of the registry may lack the right to another.
    with unready_explained():
        async with database.connection() as block:
            findings = await _check_catalogue(block)
            if settings.shared_schemas:
                findings += [finding async for finding in _check_shared(block, settings)]
            if settings.role_per_tenant:
                findings += [finding async for finding in _check_roles(block)]
    default_path = judge(
        "default path",
        f"a new connection sees {name_some(path)}, though it asks for an empty search_path" if path else "",
        "a new connection sees no schema",
        "a pooler has dropped that: ALTER ROLE … SET search_path = '' for the role in the URL",
    )
    if not settings.role_per_tenant:
        seen = "TENANTS_ROLE_PER_TENANT is off: SQL that is built from what a visitor typed reaches every tenant"
        findings.append(Finding("role per tenant", State.WARNING, seen, "switch it on, and run quart-tenants init"))
    return [default_path, *findings]


async def _check_catalogue(block: Connection) -> list[Finding]:
    await check_registry(block)
    await block.execute(DO_NOT_LOOP)
    (login,) = await block.fetch(_LOOK_AT_LOGIN)
    missing = [row["missing"] for row in await block.fetch(_LIST_MISSING_RIGHTS)]
    owner = await find_owner(block)
    strangers = await block.fetch(_LIST_STRANGERS, None if owner is None else name_readers(owner).name)
    leaks = [f"{row['grantee']} on {row['schema_name']}" for row in strangers if row["leak"]]
    others = [f"{row['grantee']} on {row['schema_name']}" for row in strangers if row["schema_name"] != REGISTRY_SCHEMA]
    return [
        judge(
            "login role",
            f"{login['login']} is a superuser, or has BYPASSRLS" if login["rolsuper"] or login["rolbypassrls"] else "",
            f"{login['login']} is no superuser",
            "give the app a role of its own that owns the database, with CREATEROLE for roles per tenant",
            State.WARNING,
        ),
        judge(
            "schema public",
            "everybody may create tables and functions in it" if login["public_open"] else "",
            "not everybody may create in it",
            "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
            State.WARNING,
        ),
        judge(
            _REGISTRY_RIGHTS,
            list_problem("this role lacks rights", missing),
            "this role may write what a login writes",
            GRANT_REGISTRY,
            State.FAILED,
        ),
        judge(
            "grants",
            list_problem("roles with USAGE that must not have it", leaks)
            or list_problem("other roles may look into tenants' schemas", others),
            "nobody else may look into the schemas of tenants and of the registry",
            "REVOKE ALL ON SCHEMA … FROM them",
            State.LEAK if leaks else State.WARNING,
        ),
    ]


async def _check_shared(block: Connection, settings: Settings) -> AsyncIterator[Finding]:
    try:
        await check_shared_schemas(block, settings=settings)
    except RegistryNotReadyError as error:
        yield Finding("shared schemas", State.FAILED, str(error), "run quart-tenants init")
        return
    common = await list_shared_names(block, settings=settings)
    yield judge(
        "shared names",
        describe_shared_names(common) if common else "",
        "no name is in a tenant's schema and in a shared one",
        "a tenant whose table is dropped would read the shared one",
    )
    foreign = await list_foreign_parts(block, settings=settings)
    yield judge(
        "shared tables",
        list_problem("this role does not own, and so cannot change", foreign),
        "this role owns the shared schemas and their tables",
        "let a superuser ALTER … OWNER TO the role in the URL",
        State.WARNING,
    )
    owner = await find_owner(block) if settings.role_per_tenant else None
    if owner is not None:
        writers = await block.fetch(
            read_statement("list_shared_writers"), settings.shared_names, name_readers(owner).name
        )
        yield judge(
            "shared schemas",
            list_problem("tenants may write there", [row["seen"] for row in writers]),
            "no tenant's role may write there",
            name_some([row["remedy"] for row in writers]),
        )
        missing = await list_shared_grants(block, owner, settings=settings)
        yield judge(
            "shared rights",
            list_problem("the tenants' roles cannot read all of what is shared; missing", missing),
            "the tenants' roles may read what is shared",
            "run quart-tenants migrate",
            State.WARNING,
        )


async def _check_roles(connection: Connection) -> AsyncIterator[Finding]:
    owner = await find_owner(connection)
    look = None if owner is None else await connection.fetchrow(_LOOK_AT_OWNER, owner.name)
    if owner is None or look is None or not look["exists"]:
        yield Finding(TENANTS_ROLES, State.LEAK, "they are not set up in this server", RUN_INIT)
        return
    if not look["member"]:
        remedy = f"GRANT {owner.quoted} TO the role in the URL"
        yield Finding(TENANTS_ROLES, State.LEAK, f"this role is no member of {owner}", remedy)
        return
    if look["mighty"]:
        remedy = f"ALTER ROLE {owner.quoted} NOSUPERUSER NOBYPASSRLS"
        yield Finding("owner", State.LEAK, f"{owner} is a superuser, or has BYPASSRLS", remedy)
    without = await list_without_role(connection, owner)
    holes: list[str] = [tenant.slug for tenant in without if tenant.open]
    strange: list[str] = [tenant.slug for tenant in without if not tenant.open]
    if holes or not without:
        seen = list_problem("without a role, or with a schema of another owner", holes)
        fine = f"every tenant has its role, and {owner} owns all schemas"
        yield judge(TENANTS_ROLES, seen, fine, RUN_INIT)
    if strange:
        seen = list_problem("something in their schemas has another owner", strange)
        remedy = f"let a superuser ALTER … OWNER TO {owner.quoted}, and {RUN_INIT}"
        yield Finding("tenants' tables", State.WARNING, seen, remedy)
    strong = await connection.fetch(read_statement("list_strong_roles"), name_readers(owner).name)
    yield judge(
        "roles' rights",
        list_problem("some may more than work in their schemas", [row["seen"] for row in strong]),
        "no tenant's role may more than work in its schema",
        f"let a superuser run: {name_some([row['remedy'] for row in strong])}",
    )
    statements = await list_public_rights(connection, owner)
    # Without a REVOKE among them, nothing is open; something is closed to us, too.
    lacking = statements and not any(statement.startswith("REVOKE") for statement in statements)
    seen = "the tenants' roles may run set_config(), make temporary tables or the like"
    if lacking:
        seen = f"this role or {owner} lacks set_config() or the like, which everybody else has lost"
    yield judge(
        "everybody's rights",
        seen if statements else "",
        "set_config(), temporary tables and the like are taken from everybody",
        f"let a superuser run once: {'; '.join(statements)}",
        State.FAILED if lacking else State.LEAK,
    )
