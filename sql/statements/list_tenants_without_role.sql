-- Lists the tenants whose role is missing or whose schema is not the owner role's alone. Includes the trash.
-- $1 the owner role. One query for all tenants.
WITH owner AS (
    SELECT oid FROM pg_catalog.pg_roles WHERE rolname = $1::text
), strange AS (
    SELECT DISTINCT d.refobjid AS schema_oid
    FROM quart_tenants.tenants AS t
    JOIN pg_catalog.pg_namespace AS n ON n.nspname = t.schema_name
    JOIN pg_catalog.pg_depend AS d
        ON d.refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass AND d.refobjid = n.oid AND d.deptype = 'n'
        AND d.classid IN ('pg_catalog.pg_class'::pg_catalog.regclass, 'pg_catalog.pg_proc'::pg_catalog.regclass)
    WHERE NOT EXISTS (
        SELECT FROM pg_catalog.pg_shdepend AS s
        WHERE s.dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
            AND s.classid = d.classid AND s.objid = d.objid AND s.objsubid = 0 AND s.deptype = 'o'
            AND s.refobjid = (SELECT oid FROM owner)
    )
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend AS e
        WHERE e.classid = d.classid AND e.objid = d.objid AND e.deptype = 'e'
    )
)
SELECT t.id, t.slug, t.schema_name, open.unprotected
FROM quart_tenants.tenants AS t
LEFT JOIN pg_catalog.pg_namespace AS n ON n.nspname = t.schema_name
LEFT JOIN pg_catalog.pg_roles AS r ON r.rolname = t.role_name
CROSS JOIN LATERAL (
    SELECT r.oid IS NULL
    OR NOT EXISTS (
        SELECT FROM pg_catalog.pg_auth_members AS m WHERE m.roleid = r.oid AND m.member = (SELECT oid FROM owner)
    )
    OR n.oid IS NOT NULL AND (
        n.nspowner IS DISTINCT FROM (SELECT oid FROM owner)
        OR NOT pg_catalog.has_schema_privilege(r.oid, n.oid, 'USAGE')
        OR pg_catalog.has_schema_privilege('public', n.oid, 'USAGE')
    ) AS unprotected
) AS open
WHERE t.purge_began_at IS NULL AND (open.unprotected OR n.oid IN (SELECT schema_oid FROM strange))
ORDER BY t.id
