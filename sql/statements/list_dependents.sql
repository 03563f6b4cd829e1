-- Lists what lies outside a schema and would go if that schema were dropped with CASCADE.
-- $1 the schema, $2 numbers of relations in it if only these are dropped, else null. Each row: kind, identity as
-- PostgreSQL writes it, and a DROP statement for what holds nobody's data (a view, a foreign key), else null.
--
-- This follows pg_depend as DROP does: what depends on a dropped object is dropped, and an object whose inner part is
-- dropped, such as the rule of a view, is dropped as a whole.
WITH RECURSIVE gone (classid, objid, objsubid) AS (
    SELECT 'pg_catalog.pg_namespace'::regclass::oid, n.oid, 0 FROM pg_catalog.pg_namespace AS n
    WHERE n.nspname = $1 AND $2::oid[] IS NULL
    UNION
    SELECT 'pg_catalog.pg_class'::regclass::oid, r.oid, 0 FROM unnest($2::oid[]) AS r (oid)
    UNION
    SELECT d.classid, d.objid, d.objsubid
    FROM gone AS g
    CROSS JOIN LATERAL (
        SELECT u.classid, u.objid, u.objsubid
        FROM pg_catalog.pg_depend AS u
        WHERE u.refclassid = g.classid AND u.refobjid = g.objid AND (g.objsubid = 0 OR u.refobjsubid = g.objsubid)
        UNION ALL
        SELECT o.refclassid, o.refobjid, o.refobjsubid
        FROM pg_catalog.pg_depend AS o
        WHERE o.classid = g.classid AND o.objid = g.objid AND o.deptype = 'i'
    ) AS d
), parts (classid, objid, objsubid, relation, schema_oid) AS (
    -- The relation to which each of them belongs, if it is a part of one, and the schema.
    -- By a subquery, because a join would read all of pg_class: the planner expects thirteen rows for each object.
    SELECT g.classid, g.objid, g.objsubid, part.relation, coalesce(
        (SELECT c.relnamespace FROM pg_catalog.pg_class AS c WHERE c.oid = part.relation), part.schema_oid
    )
    FROM gone AS g
    CROSS JOIN LATERAL (
        SELECT CASE WHEN g.objsubid > 0 THEN g.objid END, NULL::oid
        WHERE g.classid = 'pg_catalog.pg_class'::regclass AND g.objsubid > 0
        UNION ALL
        SELECT NULL, k.relnamespace FROM pg_catalog.pg_class AS k
        WHERE g.classid = 'pg_catalog.pg_class'::regclass AND k.oid = g.objid AND g.objsubid = 0
            AND k.relkind IN ('r', 'p', 'v', 'm', 'f', 'S', 'c')
        UNION ALL
        SELECT x.indrelid, NULL FROM pg_catalog.pg_index AS x
        WHERE g.classid = 'pg_catalog.pg_class'::regclass AND x.indexrelid = g.objid AND g.objsubid = 0
        UNION ALL
        SELECT nullif(k.conrelid, 0), k.connamespace FROM pg_catalog.pg_constraint AS k
        WHERE g.classid = 'pg_catalog.pg_constraint'::regclass AND k.oid = g.objid
        UNION ALL
        SELECT a.adrelid, NULL FROM pg_catalog.pg_attrdef AS a
        WHERE g.classid = 'pg_catalog.pg_attrdef'::regclass AND a.oid = g.objid
        UNION ALL
        SELECT r.ev_class, NULL FROM pg_catalog.pg_rewrite AS r
        WHERE g.classid = 'pg_catalog.pg_rewrite'::regclass AND r.oid = g.objid
        UNION ALL
        SELECT t.tgrelid, NULL FROM pg_catalog.pg_trigger AS t
        WHERE g.classid = 'pg_catalog.pg_trigger'::regclass AND t.oid = g.objid AND NOT t.tgisinternal
        UNION ALL
        SELECT p.polrelid, NULL FROM pg_catalog.pg_policy AS p
        WHERE g.classid = 'pg_catalog.pg_policy'::regclass AND p.oid = g.objid
        UNION ALL
        SELECT NULL, f.pronamespace FROM pg_catalog.pg_proc AS f
        WHERE g.classid = 'pg_catalog.pg_proc'::regclass AND f.oid = g.objid
        UNION ALL
        -- Types of rows and of arrays go with what they are of.
        SELECT NULL, y.typnamespace FROM pg_catalog.pg_type AS y
        WHERE g.classid = 'pg_catalog.pg_type'::regclass AND y.oid = g.objid AND y.typrelid = 0
            AND NOT EXISTS (SELECT FROM pg_catalog.pg_type AS e WHERE e.oid = y.typelem AND e.typarray = y.oid)
        UNION ALL
        SELECT NULL, q.oprnamespace FROM pg_catalog.pg_operator AS q
        WHERE g.classid = 'pg_catalog.pg_operator'::regclass AND q.oid = g.objid
        UNION ALL
        SELECT NULL, l.opcnamespace FROM pg_catalog.pg_opclass AS l
        WHERE g.classid = 'pg_catalog.pg_opclass'::regclass AND l.oid = g.objid
        UNION ALL
        SELECT NULL, s.stxnamespace FROM pg_catalog.pg_statistic_ext AS s
        WHERE g.classid = 'pg_catalog.pg_statistic_ext'::regclass AND s.oid = g.objid
    ) AS part (relation, schema_oid)
), outside AS MATERIALIZED (
    SELECT p.classid, p.objid, p.objsubid
    FROM parts AS p
    WHERE p.schema_oid <> (SELECT n.oid FROM pg_catalog.pg_namespace AS n WHERE n.nspname = $1)
        -- A part of a relation that goes as a whole is not told.
        AND (p.relation IS NULL OR NOT EXISTS (
            SELECT FROM gone AS g
            WHERE g.classid = 'pg_catalog.pg_class'::regclass AND g.objid = p.relation AND g.objsubid = 0
        ))
)
SELECT
    named.type AS kind,
    named.identity,
    CASE
        WHEN p.classid = 'pg_catalog.pg_class'::regclass AND p.objsubid = 0 AND k.relkind = 'v'
            THEN format('DROP VIEW IF EXISTS %s CASCADE', named.identity)
        WHEN p.classid = 'pg_catalog.pg_class'::regclass AND p.objsubid = 0 AND k.relkind = 'm'
            THEN format('DROP MATERIALIZED VIEW IF EXISTS %s CASCADE', named.identity)
        WHEN p.classid = 'pg_catalog.pg_constraint'::regclass AND key.contype = 'f'
            THEN format(
                'ALTER TABLE %s DROP CONSTRAINT IF EXISTS %I CASCADE', key.conrelid::regclass, key.conname
            )
    END AS removal
FROM outside AS p
LEFT JOIN pg_catalog.pg_class AS k ON k.oid = p.objid AND p.classid = 'pg_catalog.pg_class'::regclass
LEFT JOIN pg_catalog.pg_constraint AS key
    ON key.oid = p.objid AND p.classid = 'pg_catalog.pg_constraint'::regclass
CROSS JOIN LATERAL pg_catalog.pg_identify_object(p.classid, p.objid, p.objsubid) AS named
ORDER BY removal NULLS FIRST, kind, identity
