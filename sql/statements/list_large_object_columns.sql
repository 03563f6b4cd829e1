-- Lists the columns of schema $1 that may hold numbers of large objects: for each one a statement that says whether it
-- does, and its name. There is no row unless the database has large objects.
WITH RECURSIVE types (oid, is_array) AS (
    VALUES ('pg_catalog.oid'::regtype::oid, false)
    UNION
    -- Domains of it, arrays of it, and both of those.
    SELECT t.oid, types.is_array OR t.typtype <> 'd'
    FROM types JOIN pg_catalog.pg_type AS t
        ON (t.typtype = 'd' AND t.typbasetype = types.oid) OR (t.typcategory = 'A' AND t.typelem = types.oid)
)
SELECT
    format(
        'SELECT EXISTS (SELECT FROM %s AS r JOIN pg_catalog.pg_largeobject_metadata AS o ON o.oid = %s (r.%I))',
        c.oid::regclass, CASE WHEN types.is_array THEN 'ANY' ELSE '' END, a.attname
    ) AS question,
    format('%s.%I', c.oid::regclass, a.attname) AS name
FROM pg_catalog.pg_namespace AS n
JOIN pg_catalog.pg_depend AS d ON d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.refobjid = n.oid
    AND d.classid = 'pg_catalog.pg_class'::regclass
JOIN pg_catalog.pg_class AS c ON c.oid = d.objid
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN types ON types.oid = a.atttypid
WHERE n.nspname = $1 AND c.relkind IN ('r', 'p') AND EXISTS (SELECT FROM pg_catalog.pg_largeobject_metadata)
ORDER BY name
