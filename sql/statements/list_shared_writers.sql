-- Lists who of the tenants' roles may write in the shared schemas, each with the statement that takes the right away.
-- $1 the shared schemas, $2 the role of all who read the shared schemas. PUBLIC counts, because every role is in it.
WITH shared AS (
    SELECT oid, pg_catalog.quote_ident(nspname) AS name, nspacl
    FROM pg_catalog.pg_namespace WHERE nspname = ANY ($1::text[])
), rights (place, grantee, "right") AS (
    SELECT pg_catalog.format('SCHEMA %s', s.name), x.grantee, x.privilege_type
    FROM shared AS s CROSS JOIN LATERAL pg_catalog.aclexplode(s.nspacl) AS x WHERE x.privilege_type = 'CREATE'
    UNION ALL
    SELECT pg_catalog.format('TABLE %s.%I', s.name, c.relname), x.grantee, x.privilege_type
    FROM shared AS s JOIN pg_catalog.pg_class AS c ON c.relnamespace = s.oid AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
    CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) AS x
    WHERE x.privilege_type IN ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER')
    UNION ALL
    SELECT pg_catalog.format('SEQUENCE %s.%I', s.name, c.relname), x.grantee, x.privilege_type
    FROM shared AS s JOIN pg_catalog.pg_class AS c ON c.relnamespace = s.oid AND c.relkind = 'S'
    CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) AS x
    WHERE x.privilege_type IN ('USAGE', 'UPDATE')
    UNION ALL
    SELECT pg_catalog.format('TABLE %s.%I', s.name, c.relname), x.grantee, x.privilege_type
    FROM shared AS s JOIN pg_catalog.pg_class AS c ON c.relnamespace = s.oid
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attacl IS NOT NULL
    CROSS JOIN LATERAL pg_catalog.aclexplode(a.attacl) AS x
    WHERE x.privilege_type IN ('INSERT', 'UPDATE')
)
SELECT
    pg_catalog.format('%s has %s on %s', coalesce(g.rolname::text, 'PUBLIC'), x."right", x.place) AS seen,
    pg_catalog.format(
        'REVOKE %s ON %s FROM %s', x."right", x.place, coalesce(pg_catalog.quote_ident(g.rolname), 'PUBLIC')
    ) AS remedy
FROM rights AS x LEFT JOIN pg_catalog.pg_roles AS g ON g.oid = x.grantee
WHERE x.grantee = 0 OR g.rolname = $2::text
    OR EXISTS (SELECT FROM quart_tenants.tenants AS t WHERE t.role_name = g.rolname)
ORDER BY 1
