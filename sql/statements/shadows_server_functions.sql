-- Says whether schema $1 has a function or an operator that would be taken for a polymorphic one of PostgreSQL's, such as
-- array_append(integer[], integer), once the schema is on the path. Others cannot: pg_catalog comes first on every path,
-- and what PostgreSQL writes of an expression casts each argument to the very type.
WITH members AS MATERIALIZED (
    SELECT d.classid, d.objid
    FROM pg_catalog.pg_namespace AS n
    JOIN pg_catalog.pg_depend AS d ON d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.refobjid = n.oid
    WHERE n.nspname = $1
), own (name, argument_types) AS MATERIALIZED (
    SELECT p.proname, string_to_array(p.proargtypes::text, ' ')::oid[]
    FROM members AS m JOIN pg_catalog.pg_proc AS p ON p.oid = m.objid
    WHERE m.classid = 'pg_catalog.pg_proc'::regclass
    UNION ALL
    SELECT o.oprname, ARRAY[o.oprleft, o.oprright]
    FROM members AS m JOIN pg_catalog.pg_operator AS o ON o.oid = m.objid
    WHERE m.classid = 'pg_catalog.pg_operator'::regclass
), of_server (name, argument_types, takes_more) AS (
    SELECT proname, string_to_array(proargtypes::text, ' ')::oid[], provariadic <> 0
    FROM pg_catalog.pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND proname IN (SELECT name FROM own)
    UNION ALL
    SELECT oprname, ARRAY[oprleft, oprright], false
    FROM pg_catalog.pg_operator WHERE oprnamespace = 'pg_catalog'::regnamespace AND oprname IN (SELECT name FROM own)
)
SELECT EXISTS (
    SELECT FROM own JOIN of_server AS s ON s.name = own.name AND s.argument_types <> own.argument_types
        AND (cardinality(s.argument_types) = cardinality(own.argument_types) OR s.takes_more)
    WHERE NOT EXISTS (
        SELECT FROM unnest(own.argument_types) WITH ORDINALITY AS a (type_oid, position)
        LEFT JOIN pg_catalog.pg_type AS t ON t.oid = a.type_oid
        LEFT JOIN pg_catalog.pg_type AS p ON p.oid = s.argument_types[least(a.position, cardinality(s.argument_types))]
        WHERE t.oid IS DISTINCT FROM p.oid AND NOT coalesce(CASE
            WHEN p.typtype <> 'p' THEN false
            WHEN p.typname IN ('anyarray', 'anycompatiblearray') THEN t.typcategory = 'A'
            WHEN p.typname = 'anyenum' THEN t.typtype = 'e'
            WHEN p.typname IN ('anyrange', 'anycompatiblerange') THEN t.typtype = 'r'
            WHEN p.typname IN ('anymultirange', 'anycompatiblemultirange') THEN t.typtype = 'm'
            WHEN p.typname = 'record' THEN t.typtype = 'c'
            ELSE p.typname LIKE 'any%'
        END, false)
    )
)
