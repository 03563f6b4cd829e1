-- Lists the names that are in a tenant's schema and in a shared schema.
-- $1 the shared schemas, $2 the tenants' schemas, or null for those of all tenants outside the trash.
--
-- Each catalogue has an index that begins with the name, and the shared schemas have few names. So the names of 10,000
-- tenants are not read. The row type of a table and the type of its arrays have no names of their own.
WITH shared AS (
    SELECT oid, nspname::text AS name FROM pg_catalog.pg_namespace WHERE nspname = ANY ($1::text[])
), schemas AS (
    SELECT n.oid, n.nspname::text AS name
    FROM pg_catalog.pg_namespace AS n
    WHERE n.nspname <> ALL ($1::text[]) AND CASE
        WHEN $2::text[] IS NOT NULL THEN n.nspname = ANY ($2::text[])
        ELSE EXISTS (
            SELECT FROM quart_tenants.tenants AS t WHERE t.schema_name = n.nspname AND t.dropped_at IS NULL
        )
    END
), common (schema_oid, kind, name, shared_schema) AS (
    SELECT c.relnamespace, 'relation', c.relname, s.name
    FROM shared AS s
    JOIN pg_catalog.pg_class AS o ON o.relnamespace = s.oid AND o.relkind <> 'c'
    JOIN pg_catalog.pg_class AS c ON c.relname = o.relname AND c.relnamespace <> s.oid AND c.relkind <> 'c'
    UNION
    SELECT t.typnamespace, 'type', t.typname, s.name
    FROM shared AS s
    JOIN pg_catalog.pg_type AS o ON o.typnamespace = s.oid AND o.typcategory <> 'A' AND (
        o.typrelid = 0 OR EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = o.typrelid AND relkind = 'c')
    )
    JOIN pg_catalog.pg_type AS t ON t.typname = o.typname AND t.typnamespace <> s.oid
    UNION
    SELECT p.pronamespace, 'routine', p.proname, s.name
    FROM shared AS s
    JOIN pg_catalog.pg_proc AS o ON o.pronamespace = s.oid
    JOIN pg_catalog.pg_proc AS p ON p.proname = o.proname AND p.pronamespace <> s.oid
)
SELECT n.name AS schema_name, c.kind, c.name::text AS name, c.shared_schema
FROM common AS c JOIN schemas AS n ON n.oid = c.schema_oid
ORDER BY 1, 2, 3
