-- Lists the columns of schema $1 that may hold numbers of large objects: for each one a statement that says whether it
-- does, and its name. There is no row unless the database has large objects.
WITH RECURSIVE columns AS MATERIALIZED (
    SELECT c.oid::regclass AS place, a.attname, a.atttypid
    FROM pg_catalog.pg_namespace AS n
    JOIN pg_catalog.pg_depend AS d ON d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.refobjid = n.oid
        AND d.classid = 'pg_catalog.pg_class'::regclass
    JOIN pg_catalog.pg_class AS c ON c.oid = d.objid
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE n.nspname = $1 AND c.relkind IN ('r', 'p') AND EXISTS (SELECT FROM pg_catalog.pg_largeobject_metadata)
),
-- What a domain or an array of one is made of, down to the ground.
types (column_type, oid, is_array) AS (
    SELECT DISTINCT atttypid, atttypid, false FROM columns
    UNION
    SELECT types.column_type, CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.typelem END, types.is_array OR t.typtype <> 'd'
    FROM types JOIN pg_catalog.pg_type AS t ON t.oid = types.oid
    WHERE t.typtype = 'd' OR t.typcategory = 'A'
)
SELECT
    format(
        'SELECT EXISTS (SELECT FROM %s AS r JOIN pg_catalog.pg_largeobject_metadata AS o ON o.oid = %s (r.%I))',
        place, CASE WHEN types.is_array THEN 'ANY' ELSE '' END, attname
    ) AS question,
    format('%s.%I', place, attname) AS name
FROM columns JOIN types ON types.column_type = columns.atttypid AND types.oid = 'pg_catalog.oid'::regtype
ORDER BY name
