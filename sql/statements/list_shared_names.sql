-- Lists the names that are in a tenant's schema and in a shared schema.
-- $1 the shared schemas, $2 the tenants' schemas, or null for those of all tenants outside the trash.
--
-- Each catalogue has an index that begins with the name, and the shared schemas have few names. So the names of 10,000
-- tenants are not read. What is in the shared schemas is found through pg_depend, because no catalogue has an index by
-- schema: there are indexes of tables, types of rows and types of ranges that only what they are of depends on.
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
), parts AS MATERIALIZED (
    SELECT s.oid AS schema_oid, s.name, d.classid, d.objid
    FROM shared AS s
    JOIN pg_catalog.pg_depend AS d
        ON d.refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass AND d.refobjid = s.oid
), relations AS MATERIALIZED (
    SELECT x.schema_oid, x.name, c.oid, c.relname, c.reltype
    FROM parts AS x
    JOIN pg_catalog.pg_class AS c ON c.oid = x.objid
    WHERE x.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
), types AS MATERIALIZED (
    SELECT schema_oid, name, objid AS oid FROM parts WHERE classid = 'pg_catalog.pg_type'::pg_catalog.regclass
    UNION ALL
    SELECT x.schema_oid, x.name, r.rngmultitypid
    FROM parts AS x
    JOIN pg_catalog.pg_range AS r ON r.rngtypid = x.objid
    WHERE x.classid = 'pg_catalog.pg_type'::pg_catalog.regclass
    UNION ALL
    SELECT schema_oid, name, reltype FROM relations
), common (schema_oid, kind, name, shared_schema) AS (
    SELECT c.relnamespace, 'relation', c.relname, s.name
    FROM (
        SELECT schema_oid, name, relname FROM relations
        UNION ALL
        SELECT r.schema_oid, r.name, i.relname
        FROM relations AS r
        JOIN pg_catalog.pg_index AS x ON x.indrelid = r.oid
        JOIN pg_catalog.pg_class AS i ON i.oid = x.indexrelid
    ) AS s
    JOIN pg_catalog.pg_class AS c ON c.relname = s.relname AND c.relnamespace <> s.schema_oid AND c.relkind <> 'c'
    UNION
    -- A table has a type of its name. Two tables of one name are told as relations, and types of arrays not at all.
    SELECT t.typnamespace, 'type', t.typname, s.name
    FROM types AS s
    JOIN pg_catalog.pg_type AS o ON o.oid = s.oid
    JOIN pg_catalog.pg_type AS t ON t.typname = o.typname AND t.typnamespace <> s.schema_oid
    WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_type AS e WHERE e.oid = o.typelem AND e.typarray = o.oid)
        AND NOT EXISTS (SELECT FROM pg_catalog.pg_type AS e WHERE e.oid = t.typelem AND e.typarray = t.oid)
        AND NOT (
            EXISTS (SELECT FROM pg_catalog.pg_class AS c WHERE c.oid = o.typrelid AND c.relkind <> 'c')
            AND EXISTS (SELECT FROM pg_catalog.pg_class AS c WHERE c.oid = t.typrelid AND c.relkind <> 'c')
        )
    UNION
    SELECT p.oprnamespace, 'operator', p.oprname, s.name
    FROM parts AS s
    JOIN pg_catalog.pg_operator AS o ON o.oid = s.objid
    JOIN pg_catalog.pg_operator AS p
        ON p.oprname = o.oprname AND p.oprleft = o.oprleft AND p.oprright = o.oprright AND p.oprnamespace <> s.schema_oid
    WHERE s.classid = 'pg_catalog.pg_operator'::pg_catalog.regclass
    UNION
    SELECT c.collnamespace, 'collation', c.collname, s.name
    FROM parts AS s
    JOIN pg_catalog.pg_collation AS o ON o.oid = s.objid
    JOIN pg_catalog.pg_collation AS c ON c.collname = o.collname AND c.collnamespace <> s.schema_oid
    WHERE s.classid = 'pg_catalog.pg_collation'::pg_catalog.regclass
    UNION
    SELECT c.cfgnamespace, 'text search configuration', c.cfgname, s.name
    FROM parts AS s
    JOIN pg_catalog.pg_ts_config AS o ON o.oid = s.objid
    JOIN pg_catalog.pg_ts_config AS c ON c.cfgname = o.cfgname AND c.cfgnamespace <> s.schema_oid
    WHERE s.classid = 'pg_catalog.pg_ts_config'::pg_catalog.regclass
    UNION
    SELECT d.dictnamespace, 'text search dictionary', d.dictname, s.name
    FROM parts AS s
    JOIN pg_catalog.pg_ts_dict AS o ON o.oid = s.objid
    JOIN pg_catalog.pg_ts_dict AS d ON d.dictname = o.dictname AND d.dictnamespace <> s.schema_oid
    WHERE s.classid = 'pg_catalog.pg_ts_dict'::pg_catalog.regclass
    UNION
    SELECT p.pronamespace, 'routine', p.proname, s.name
    FROM parts AS s
    JOIN pg_catalog.pg_proc AS o ON o.oid = s.objid
    JOIN pg_catalog.pg_proc AS p ON p.proname = o.proname AND p.pronamespace <> s.schema_oid
    WHERE s.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass
)
SELECT n.name AS schema_name, c.kind, c.name::text AS name, c.shared_schema
FROM common AS c JOIN schemas AS n ON n.oid = c.schema_oid
ORDER BY 1, 2, 3
