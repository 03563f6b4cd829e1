-- Lists the rights of tenants' roles that reach beyond their schemas, each with the statement that takes it away.
-- $1 the role of those who read the shared schemas.
-- The rights of PUBLIC are checked elsewhere. Only grants to a role itself and its memberships are read, because asking
-- for every function whether each of 10,000 roles may run it would take too long. Nobody has a reason to grant such a
-- role more of PostgreSQL's functions than PUBLIC has: set_config() leads out of the role, and others read files.
WITH roles AS (
    SELECT r.oid, r.rolname, r.rolsuper, r.rolbypassrls, r.rolcanlogin, r.rolcreaterole
    FROM pg_catalog.pg_roles AS r
    WHERE r.rolname = $1::text OR EXISTS (SELECT FROM quart_tenants.tenants AS t WHERE t.role_name = r.rolname)
), rights (grantee, "right", place) AS (
    SELECT x.grantee, x.privilege_type, pg_catalog.format('FUNCTION %s', p.oid::pg_catalog.regprocedure)
    FROM pg_catalog.pg_proc AS p CROSS JOIN LATERAL pg_catalog.aclexplode(p.proacl) AS x
    WHERE p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace
    UNION ALL
    SELECT x.grantee, x.privilege_type, 'pg_catalog.pg_settings'
    FROM pg_catalog.pg_class AS c CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) AS x
    WHERE c.oid = 'pg_catalog.pg_settings'::pg_catalog.regclass AND x.privilege_type = 'UPDATE'
    UNION ALL
    SELECT x.grantee, x.privilege_type, pg_catalog.format('DATABASE %I', d.datname)
    FROM pg_catalog.pg_database AS d CROSS JOIN LATERAL pg_catalog.aclexplode(d.datacl) AS x
    WHERE d.datname = pg_catalog.current_database() AND x.privilege_type IN ('TEMPORARY', 'CREATE')
)
SELECT
    pg_catalog.format(
        '%s has %s', rolname, pg_catalog.concat_ws(
            ', ', CASE WHEN rolsuper THEN 'SUPERUSER' END, CASE WHEN rolbypassrls THEN 'BYPASSRLS' END,
            CASE WHEN rolcanlogin THEN 'LOGIN' END, CASE WHEN rolcreaterole THEN 'CREATEROLE' END
        )
    ) AS seen,
    pg_catalog.format('ALTER ROLE %I NOSUPERUSER NOBYPASSRLS NOLOGIN NOCREATEROLE', rolname) AS remedy
FROM roles WHERE rolsuper OR rolbypassrls OR rolcanlogin OR rolcreaterole
UNION ALL
SELECT
    pg_catalog.format('%s is a member of %s', r.rolname, g.rolname),
    -- Since PostgreSQL 16 each grantor's grant is one of its own.
    pg_catalog.format('REVOKE %I FROM %I', g.rolname, r.rolname) || CASE
        WHEN pg_catalog.current_setting('server_version_num')::integer < 160000 THEN ''
        ELSE pg_catalog.format(' GRANTED BY %I', o.rolname)
    END
FROM roles AS r
JOIN pg_catalog.pg_auth_members AS m ON m.member = r.oid
-- All of them may read what is shared.
JOIN pg_catalog.pg_roles AS g ON g.oid = m.roleid AND g.rolname <> $1::text
LEFT JOIN pg_catalog.pg_roles AS o ON o.oid = m.grantor
UNION ALL
SELECT
    pg_catalog.format('%s has %s on %s', r.rolname, x."right", x.place),
    pg_catalog.format('REVOKE %s ON %s FROM %I', x."right", x.place, r.rolname)
FROM roles AS r JOIN rights AS x ON x.grantee = r.oid
ORDER BY 1
