-- Lists the names that are in a tenant's schema and in a shared schema.
-- $1 the shared schemas, $2 the tenants' schemas, or null for those of all tenants outside the trash.
--
-- Each catalogue has an index that begins with the name, and the shared schemas have few names. So the names of 10,000
-- tenants are not read.
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
    -- A table has a type of its name. Two tables of one name are told as relations, and types of arrays not at all.
    SELECT t.typnamespace, 'type', t.typname, s.name
    FROM shared AS s
    JOIN pg_catalog.pg_type AS o ON o.typnamespace = s.oid
    JOIN pg_catalog.pg_type AS t ON t.typname = o.typname AND t.typnamespace <> s.oid
    WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_type AS e WHERE e.typarray IN (o.oid, t.oid))
        AND NOT (
            EXISTS (SELECT FROM pg_catalog.pg_class AS c WHERE c.oid = o.typrelid AND c.relkind <> 'c')
            AND EXISTS (SELECT FROM pg_catalog.pg_class AS c WHERE c.oid = t.typrelid AND c.relkind <> 'c')
        )
    UNION
    SELECT p.oprnamespace, 'operator', p.oprname, s.name
    FROM shared AS s
    JOIN pg_catalog.pg_operator AS o ON o.oprnamespace = s.oid
    JOIN pg_catalog.pg_operator AS p
        ON p.oprname = o.oprname AND p.oprleft = o.oprleft AND p.oprright = o.oprright AND p.oprnamespace <> s.oid
    UNION
    SELECT c.collnamespace, 'collation', c.collname, s.name
    FROM shared AS s
    JOIN pg_catalog.pg_collation AS o ON o.collnamespace = s.oid
    JOIN pg_catalog.pg_collation AS c ON c.collname = o.collname AND c.collnamespace <> s.oid
    UNION
    SELECT c.cfgnamespace, 'text search configuration', c.cfgname, s.name
    FROM shared AS s
    JOIN pg_catalog.pg_ts_config AS o ON o.cfgnamespace = s.oid
    JOIN pg_catalog.pg_ts_config AS c ON c.cfgname = o.cfgname AND c.cfgnamespace <> s.oid
    UNION
    SELECT d.dictnamespace, 'text search dictionary', d.dictname, s.name
    FROM shared AS s
    JOIN pg_catalog.pg_ts_dict AS o ON o.dictnamespace = s.oid
    JOIN pg_catalog.pg_ts_dict AS d ON d.dictname = o.dictname AND d.dictnamespace <> s.oid
    UNION
    SELECT p.pronamespace, 'routine', p.proname, s.name
    FROM shared AS s
    JOIN pg_catalog.pg_proc AS o ON o.pronamespace = s.oid
    JOIN pg_catalog.pg_proc AS p ON p.proname = o.proname AND p.pronamespace <> s.oid
)
SELECT n.name AS schema_name, c.kind, c.name::text AS name, c.shared_schema
FROM common AS c JOIN schemas AS n ON n.oid = c.schema_oid
ORDER BY 1, 2, 3
