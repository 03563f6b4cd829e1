"""Check whether a cluster of Citus is set up as the tenants need it. On plain PostgreSQL there is nothing to check."""

from quart_tenants.connection import Connection
from quart_tenants.postgres.citus.cluster import has_citus
from quart_tenants.postgres.doctor.catalogue_checks import Finding, State, judge, list_problem
from quart_tenants.settings import Settings

# The second setting is on if nobody has set it.
_LOOK = """
SELECT
    pg_catalog.current_setting('citus.enable_schema_based_sharding', true) = 'on' AS distributes,
    coalesce(pg_catalog.current_setting('citus.override_table_visibility', true), 'on') = 'on' AS hides,
    EXISTS (
        SELECT FROM pg_catalog.pg_dist_schema WHERE schemaid = pg_catalog.to_regnamespace('quart_tenants')
    ) AS registry_distributed
"""
_LIST_PLAIN = """
SELECT t.slug FROM quart_tenants.living_tenants AS t
JOIN pg_catalog.pg_namespace AS n ON n.nspname = t.schema_name
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_dist_schema AS d WHERE d.schemaid = n.oid) ORDER BY t.slug
"""
_IN_DATABASE = "ALTER DATABASE … SET"


async def check_cluster(connection: Connection, *, settings: Settings) -> list[Finding]:
    """Return what is found; nothing on plain PostgreSQL."""
    if not await has_citus(connection):
        return []
    (look,) = await connection.fetch(_LOOK)
    plain = [row["slug"] for row in await connection.fetch(_LIST_PLAIN)]
    sharding = "" if look["distributes"] else "the schemas of new tenants stay on the coordinator"
    hidden = "each look at the catalogue by a driver takes seconds with many tenants" if look["hides"] else ""
    registry = "schema quart_tenants is distributed, and workers miss changes" if look["registry_distributed"] else ""
    return [
        judge(
            "Citus: roles",
            "a role per tenant does not work on Citus" if settings.role_per_tenant else "",
            "tenants have no roles of their own",
            "switch TENANTS_ROLE_PER_TENANT off",
            State.FAILED,
        ),
        judge(
            "Citus: registry",
            registry,
            "the registry is on the coordinator",
            "SELECT citus_schema_undistribute('quart_tenants')",
            State.FAILED,
        ),
        judge(
            "Citus: new tenants",
            sharding,
            "the schemas of new tenants are distributed",
            f"{_IN_DATABASE} citus.enable_schema_based_sharding TO on",
            State.TO_DO,
        ),
        judge(
            "Citus: catalogue",
            hidden,
            "drivers read the catalogue at full speed",
            f"{_IN_DATABASE} citus.override_table_visibility TO off",
            State.TO_DO,
        ),
        judge(
            "Citus: tenants",
            list_problem("these have plain schemas on the coordinator", plain),
            "the schemas of all tenants are distributed",
            "SELECT citus_schema_distribute('…') for each, while nobody uses it",
            State.TO_DO,
        ),
    ]
