-- Lists the columns of schema $1 that may hold numbers of large objects: for each one a statement that says whether it
-- does, and its name. There is no row unless the database has large objects.
SELECT
    format(
        'SELECT EXISTS (SELECT FROM %s AS r JOIN pg_catalog.pg_largeobject_metadata AS o ON o.oid = r.%I)',
        c.oid::regclass, a.attname
    ) AS question,
    format('%s.%I', c.oid::regclass, a.attname) AS name
FROM pg_catalog.pg_namespace AS n
JOIN pg_catalog.pg_depend AS d ON d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.refobjid = n.oid
    AND d.classid = 'pg_catalog.pg_class'::regclass
JOIN pg_catalog.pg_class AS c ON c.oid = d.objid
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
WHERE n.nspname = $1 AND c.relkind IN ('r', 'p') AND 'pg_catalog.oid'::regtype IN (t.oid, t.typbasetype, (SELECT b.typbasetype FROM pg_catalog.pg_type AS b WHERE b.oid = t.typbasetype))
    AND EXISTS (SELECT FROM pg_catalog.pg_largeobject_metadata)
ORDER BY name
