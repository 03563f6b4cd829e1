-- Lists DROP statements for some relations of a schema.
-- $1 the schema, $2 how many. Partitions and child tables come before their parents, and relations with few dependents
-- before those with many. So no single DROP has to lock thousands of others. What belongs to a column or an extension
-- is not listed, because it goes with that. Each row: the relation's number, the statement, and the name of a table.
SELECT
    c.oid AS relation,
    format(
        'DROP %s IF EXISTS %I.%I CASCADE',
        CASE c.relkind
            WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'f' THEN 'FOREIGN TABLE'
            WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE'
        END,
        n.nspname, c.relname
    ) AS statement,
    CASE WHEN c.relkind IN ('r', 'p') THEN format('%I.%I', n.nspname, c.relname) END AS "table"
FROM pg_catalog.pg_namespace AS n
JOIN pg_catalog.pg_depend AS d
    ON d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.refobjid = n.oid
    AND d.classid = 'pg_catalog.pg_class'::regclass
JOIN pg_catalog.pg_class AS c ON c.oid = d.objid AND c.relkind IN ('r', 'p', 'f', 'v', 'm', 'S')
WHERE n.nspname = $1
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_inherits AS i JOIN pg_catalog.pg_class AS heir ON heir.oid = i.inhrelid
        WHERE i.inhparent = c.oid AND heir.relnamespace = n.oid
    )
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend AS owned
        WHERE owned.classid = 'pg_catalog.pg_class'::regclass AND owned.objid = c.oid
            AND (owned.deptype = 'e' OR c.relkind = 'S' AND owned.deptype IN ('a', 'i'))
    )
ORDER BY
    (SELECT count(*) FROM pg_catalog.pg_depend AS u
     WHERE u.refclassid = 'pg_catalog.pg_class'::regclass AND u.refobjid = c.oid AND u.deptype = 'n'),
    c.oid DESC
LIMIT $2
