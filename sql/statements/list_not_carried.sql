-- Lists what belongs to schema $1 and would not be in its backup, with what to do. Each row: what it is, and the remedy.
-- pg_dump --schema leaves out what belongs to the whole database, and says nothing.
WITH tenant AS (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = $1),
-- By pg_depend, because pg_class and pg_type have no index by schema.
members AS MATERIALIZED (
    SELECT d.classid, d.objid FROM pg_catalog.pg_depend AS d JOIN tenant ON d.refobjid = tenant.oid
    WHERE d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.deptype = 'n'
),
relations AS MATERIALIZED (
    SELECT c.oid, c.relkind, c.reltype FROM members AS m JOIN pg_catalog.pg_class AS c ON c.oid = m.objid
    WHERE m.classid = 'pg_catalog.pg_class'::regclass
),
types AS MATERIALIZED (
    SELECT m.objid AS oid FROM members AS m WHERE m.classid = 'pg_catalog.pg_type'::regclass
    UNION ALL SELECT reltype FROM relations
)
SELECT
    'the extension ' || quote_ident(e.extname) AS name,
    format('move it to a shared schema: ALTER EXTENSION %I SET SCHEMA %I', e.extname, $2::text) AS remedy
FROM pg_catalog.pg_extension AS e JOIN tenant ON e.extnamespace = tenant.oid
UNION ALL
SELECT
    'the foreign table ' || r.oid::regclass,
    'its rows are on another server; move it to a shared schema, or drop it'
FROM relations AS r WHERE r.relkind = 'f'
UNION ALL
SELECT
    format('the cast from %s to %s', c.castsource::regtype, c.casttarget::regtype),
    'casts belong to the whole database; write a function in its place, or move the type to a shared schema'
FROM pg_catalog.pg_cast AS c
WHERE (c.castsource IN (SELECT oid FROM types) OR c.casttarget IN (SELECT oid FROM types))
    -- Each range type has one to its multirange type. Those of an extension come with it.
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend AS d
        WHERE d.classid = 'pg_catalog.pg_cast'::regclass AND d.objid = c.oid AND d.deptype IN ('i', 'e')
    )
UNION ALL
SELECT
    format('the transform for type %s', f.trftype::regtype),
    'transforms belong to the whole database; move the type to a shared schema'
FROM pg_catalog.pg_transform AS f WHERE f.trftype IN (SELECT oid FROM types)
UNION ALL
SELECT
    format('%s, which inherits from %s', i.inhrelid::regclass, i.inhparent::regclass),
    'one of the two is in another schema; both must be in the tenant''s'
FROM relations AS r
CROSS JOIN LATERAL (
    SELECT inhrelid, inhparent, inhparent AS other FROM pg_catalog.pg_inherits WHERE inhrelid = r.oid
    UNION ALL
    SELECT inhrelid, inhparent, inhrelid FROM pg_catalog.pg_inherits WHERE inhparent = r.oid
) AS i
WHERE i.other NOT IN (SELECT oid FROM relations)
UNION ALL
SELECT
    format('%s, which a subscription fills', s.srrelid::regclass),
    'the server that publishes it would send its rows again; remove the table from the subscription first'
FROM pg_catalog.pg_subscription_rel AS s WHERE s.srrelid IN (SELECT oid FROM relations)
UNION ALL
SELECT
    format('%s, which belongs to an extension', r.oid::regclass),
    'a dump leaves it to the extension: ALTER EXTENSION … DROP TABLE'
FROM relations AS r JOIN pg_catalog.pg_depend AS d
    ON d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = r.oid AND d.deptype = 'e'
UNION ALL
SELECT
    format('statistics of %s that are in another schema', s.stxrelid::regclass),
    'move them: ALTER STATISTICS … SET SCHEMA'
FROM relations AS r JOIN pg_catalog.pg_statistic_ext AS s ON s.stxrelid = r.oid
WHERE s.oid NOT IN (SELECT objid FROM members WHERE classid = 'pg_catalog.pg_statistic_ext'::regclass)
UNION ALL
SELECT
    format('%s, which publication %I publishes', p.prrelid::regclass, u.pubname),
    'publications belong to the whole database, and would go on with the old table; take it out of the publication'
FROM relations AS r JOIN pg_catalog.pg_publication_rel AS p ON p.prrelid = r.oid
JOIN pg_catalog.pg_publication AS u ON u.oid = p.prpubid
UNION ALL
SELECT
    format('publication %I, which publishes the schema', u.pubname),
    'publications belong to the whole database, and would go on with the old schema; take it out of the publication'
FROM tenant JOIN pg_catalog.pg_publication_namespace AS p ON p.pnnspid = tenant.oid
JOIN pg_catalog.pg_publication AS u ON u.oid = p.pnpubid
UNION ALL
SELECT
    format('the key %I of %s, which is switched off', k.conname, k.conrelid::regclass),
    format('a dump would switch it on: ALTER TABLE %s ENABLE TRIGGER ALL', g.tgrelid::regclass)
FROM relations AS r JOIN pg_catalog.pg_trigger AS g ON g.tgrelid = r.oid AND g.tgisinternal AND g.tgenabled <> 'O'
JOIN pg_catalog.pg_constraint AS k ON k.oid = g.tgconstraint
UNION ALL
SELECT
    format('the function of event trigger %I', e.evtname),
    'event triggers belong to the whole database; move the function to a shared schema'
FROM members AS m JOIN pg_catalog.pg_event_trigger AS e ON e.evtfoid = m.objid
WHERE m.classid = 'pg_catalog.pg_proc'::regclass
ORDER BY 1
