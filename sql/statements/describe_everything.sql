-- Describes all that pg_dump would write of the first schema on the path, but for the rows: one part for each object.
-- $1 whether rights count. Two schemas with the same parts are made of the same objects.
--
-- The path takes the schema's own name out of the texts; where PostgreSQL writes it nevertheless, it is replaced. An
-- object that is not described here gets a part with its number, which no other schema has.
WITH tenant AS (
    SELECT oid, nspname, nspowner, nspacl, pg_catalog.quote_ident(nspname) || '.' AS prefix
    FROM pg_catalog.pg_namespace WHERE nspname = pg_catalog.current_schema()
),
-- By pg_depend, because pg_class and pg_type have no index by schema.
members AS MATERIALIZED (
    SELECT d.classid, d.objid FROM pg_catalog.pg_depend AS d JOIN tenant ON d.refobjid = tenant.oid
    WHERE d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.deptype = 'n'
),
relations AS MATERIALIZED (
    SELECT c.* FROM members AS m JOIN pg_catalog.pg_class AS c ON c.oid = m.objid
    WHERE m.classid = 'pg_catalog.pg_class'::regclass
    UNION ALL
    -- The columns of a composite type. It depends on the schema only by its type.
    SELECT c.* FROM members AS m
    JOIN pg_catalog.pg_type AS t ON t.oid = m.objid
    JOIN pg_catalog.pg_class AS c ON c.oid = t.typrelid AND c.relkind = 'c'
    WHERE m.classid = 'pg_catalog.pg_type'::regclass
),
-- Rights that are the default are not described, whether they are written down or not, and nobody dumps them.
rights (place, owner, acl) AS (
    SELECT place, owner, acl FROM (
        SELECT 'schema', 'n'::"char", nspowner, nspacl FROM tenant
        UNION ALL
        SELECT oid::regclass::text, CASE relkind WHEN 'S' THEN 's'::"char" ELSE 'r' END, relowner, relacl FROM relations
        UNION ALL
        SELECT concat_ws('.', r.oid::regclass, quote_ident(a.attname)), 'c', r.relowner, a.attacl
        FROM relations AS r JOIN pg_catalog.pg_attribute AS a ON a.attrelid = r.oid AND a.attacl IS NOT NULL
        UNION ALL
        SELECT p.oid::regprocedure::text, 'f', p.proowner, p.proacl
        FROM members AS m JOIN pg_catalog.pg_proc AS p ON p.oid = m.objid AND m.classid = 'pg_catalog.pg_proc'::regclass
        UNION ALL
        SELECT 'type ' || t.oid::regtype, 'T', t.typowner, t.typacl
        FROM members AS m JOIN pg_catalog.pg_type AS t ON t.oid = m.objid AND m.classid = 'pg_catalog.pg_type'::regclass
    ) AS written (place, kind, owner, acl)
    WHERE NOT (acl @> acldefault(kind, owner) AND acl <@ acldefault(kind, owner))
),
parts (part) AS (
    SELECT ROW(
        'relation', r.oid::regclass, r.relkind, r.relpersistence, r.relreplident, r.relrowsecurity,
        r.relforcerowsecurity, r.relispopulated, array_to_string(r.reloptions, ','), array_to_string(t.reloptions, ','),
        (SELECT amname FROM pg_catalog.pg_am WHERE pg_am.oid = r.relam),
        (SELECT spcname FROM pg_catalog.pg_tablespace AS s WHERE s.oid = r.reltablespace),
        nullif(r.reloftype, 0)::regtype, pg_catalog.pg_get_partkeydef(r.oid),
        pg_catalog.pg_get_expr(r.relpartbound, r.oid), obj_description(r.oid, 'pg_class'),
        CASE WHEN r.relkind IN ('v', 'm') THEN pg_catalog.pg_get_viewdef(r.oid) END
    )
    FROM relations AS r LEFT JOIN pg_catalog.pg_class AS t ON t.oid = r.reltoastrelid
    UNION ALL
    SELECT ROW('inherits', i.inhrelid::regclass, i.inhparent::regclass, i.inhseqno)
    FROM relations AS r JOIN pg_catalog.pg_inherits AS i ON i.inhrelid = r.oid
    UNION ALL
    SELECT ROW(
        'column', r.oid::regclass, row_number() OVER (PARTITION BY r.oid ORDER BY a.attnum), quote_ident(a.attname),
        format_type(a.atttypid, a.atttypmod), nullif(a.attcollation, y.typcollation)::regcollation, a.attnotnull,
        a.attidentity, a.attgenerated, a.attislocal, a.attinhcount, a.attstattarget, nullif(a.attstorage, y.typstorage),
        a.attcompression, array_to_string(a.attoptions, ','), pg_catalog.pg_get_expr(d.adbin, d.adrelid),
        col_description(r.oid, a.attnum)
    )
    FROM relations AS r
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
    JOIN pg_catalog.pg_type AS y ON y.oid = a.atttypid
    LEFT JOIN pg_catalog.pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE r.relkind <> 'S'
    UNION ALL
    SELECT ROW(
        'constraint', r.oid::regclass, quote_ident(k.conname), pg_catalog.pg_get_constraintdef(k.oid), k.conislocal,
        k.coninhcount, k.connoinherit, obj_description(k.oid, 'pg_constraint')
    )
    FROM relations AS r JOIN pg_catalog.pg_constraint AS k ON k.conrelid = r.oid AND k.contype <> 't' AND k.conparentid = 0
    UNION ALL
    SELECT ROW(
        'index', pg_catalog.pg_get_indexdef(x.indexrelid, 0, true), x.indisvalid, x.indisclustered, x.indisreplident,
        (SELECT spcname FROM pg_catalog.pg_tablespace AS s WHERE s.oid = i.reltablespace),
        (SELECT string_agg(a.attstattarget::text, ',' ORDER BY a.attnum) FROM pg_catalog.pg_attribute AS a WHERE a.attrelid = i.oid),
        obj_description(i.oid, 'pg_class')
    )
    FROM relations AS r
    JOIN pg_catalog.pg_index AS x ON x.indrelid = r.oid
    JOIN pg_catalog.pg_class AS i ON i.oid = x.indexrelid
    UNION ALL
    SELECT ROW(
        'sequence', r.oid::regclass, s.seqtypid::regtype, s.seqstart, s.seqincrement, s.seqmax, s.seqmin, s.seqcache,
        s.seqcycle, o.deptype, o.refobjid::regclass, quote_ident(a.attname)
    )
    FROM relations AS r
    JOIN pg_catalog.pg_sequence AS s ON s.seqrelid = r.oid
    LEFT JOIN pg_catalog.pg_depend AS o
        ON o.classid = 'pg_catalog.pg_class'::regclass AND o.objid = r.oid AND o.deptype IN ('a', 'i')
        AND o.refclassid = 'pg_catalog.pg_class'::regclass
    LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = o.refobjid AND a.attnum = o.refobjsubid
    UNION ALL
    SELECT ROW(
        'trigger', r.oid::regclass, pg_catalog.pg_get_triggerdef(g.oid, true), g.tgenabled,
        obj_description(g.oid, 'pg_trigger')
    )
    FROM relations AS r JOIN pg_catalog.pg_trigger AS g ON g.tgrelid = r.oid AND NOT g.tgisinternal
    UNION ALL
    SELECT ROW(
        'rule', r.oid::regclass, pg_catalog.pg_get_ruledef(w.oid, true), w.ev_enabled, obj_description(w.oid, 'pg_rewrite')
    )
    FROM relations AS r JOIN pg_catalog.pg_rewrite AS w ON w.ev_class = r.oid AND w.rulename <> '_RETURN'
    UNION ALL
    SELECT ROW(
        'policy', r.oid::regclass, quote_ident(p.polname), p.polcmd, p.polpermissive,
        (SELECT string_agg(role_oid::regrole::text, ',' ORDER BY role_oid) FROM unnest(p.polroles) AS role_oid),
        pg_catalog.pg_get_expr(p.polqual, p.polrelid), '/', pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid),
        obj_description(p.oid, 'pg_policy')
    )
    FROM relations AS r JOIN pg_catalog.pg_policy AS p ON p.polrelid = r.oid
    UNION ALL
    SELECT ROW(
        'statistics', pg_catalog.replace(pg_catalog.pg_get_statisticsobjdef(s.oid), tenant.prefix, ''), s.stxstattarget,
        obj_description(s.oid, 'pg_statistic_ext')
    )
    FROM tenant, members AS m JOIN pg_catalog.pg_statistic_ext AS s ON s.oid = m.objid
    WHERE m.classid = 'pg_catalog.pg_statistic_ext'::regclass
    UNION ALL
    SELECT ROW(
        'type', t.oid::regtype, t.typtype, format_type(nullif(t.typbasetype, 0), t.typtypmod), t.typnotnull, t.typdefault,
        nullif(t.typcollation, 0)::regcollation, obj_description(t.oid, 'pg_type'),
        (SELECT string_agg(quote_literal(e.enumlabel), ',' ORDER BY e.enumsortorder) FROM pg_catalog.pg_enum AS e
         WHERE e.enumtypid = t.oid),
        -- By pg_depend: the planner only knows of contypid that nearly all are 0, and does not use its index.
        (SELECT string_agg(
            concat_ws(' ', quote_ident(k.conname), pg_catalog.pg_get_constraintdef(k.oid), obj_description(k.oid, 'pg_constraint')), ','
            ORDER BY k.conname
        ) FROM pg_catalog.pg_depend AS d JOIN pg_catalog.pg_constraint AS k ON k.oid = d.objid AND k.contypid = t.oid
         WHERE d.refclassid = 'pg_catalog.pg_type'::regclass AND d.refobjid = t.oid
             AND d.classid = 'pg_catalog.pg_constraint'::regclass),
        (SELECT ROW(
            g.rngsubtype::regtype, nullif(g.rngcollation, 0)::regcollation, g.rngmultitypid::regtype, g.rngcanonical,
            g.rngsubdiff, (SELECT opcname FROM pg_catalog.pg_opclass AS o WHERE o.oid = g.rngsubopc)
        ) FROM pg_catalog.pg_range AS g WHERE g.rngtypid = t.oid),
        -- Of C functions; nothing else makes one.
        CASE WHEN t.typtype = 'b' THEN t.oid END
    )
    FROM members AS m JOIN pg_catalog.pg_type AS t ON t.oid = m.objid WHERE m.classid = 'pg_catalog.pg_type'::regclass
    UNION ALL
    SELECT ROW(
        'function', obj_description(p.oid, 'pg_proc'), p.proleakproof,
        pg_catalog.replace(pg_catalog.replace(split_part(f.text, E'\nAS ', 1), tenant.prefix, ''), quote_literal(tenant.nspname), '@'),
        pg_catalog.substr(f.text, pg_catalog.length(split_part(f.text, E'\nAS ', 1)) + 1)
    )
    FROM tenant, members AS m
    JOIN pg_catalog.pg_proc AS p ON p.oid = m.objid AND p.prokind <> 'a'
    CROSS JOIN LATERAL (SELECT pg_catalog.pg_get_functiondef(p.oid)) AS f (text)
    WHERE m.classid = 'pg_catalog.pg_proc'::regclass
    UNION ALL
    SELECT ROW('schema', obj_description(oid, 'pg_namespace')) FROM tenant
    UNION ALL
    SELECT ROW(
        'right', rights.place, CASE WHEN x.grantee = rights.owner THEN '@' ELSE x.grantee::regrole::text END,
        x.privilege_type, x.is_grantable
    )
    FROM rights CROSS JOIN LATERAL pg_catalog.aclexplode(rights.acl) AS x WHERE $1
    UNION ALL
    SELECT ROW('no right', place) FROM rights WHERE $1 AND cardinality(acl) = 0
    UNION ALL
    SELECT ROW('right for later', a.oid) FROM pg_catalog.pg_default_acl AS a JOIN tenant ON a.defaclnamespace = tenant.oid
    WHERE $1
    UNION ALL
    SELECT ROW('label', l.objoid) FROM pg_catalog.pg_seclabel AS l WHERE l.objoid IN (SELECT objid FROM members)
    UNION ALL
    SELECT ROW('other', m.classid::regclass, m.objid)
    FROM members AS m LEFT JOIN pg_catalog.pg_proc AS p ON p.oid = m.objid AND m.classid = 'pg_catalog.pg_proc'::regclass
    WHERE m.classid NOT IN (
        'pg_catalog.pg_class'::regclass, 'pg_catalog.pg_type'::regclass, 'pg_catalog.pg_proc'::regclass,
        'pg_catalog.pg_statistic_ext'::regclass, 'pg_catalog.pg_default_acl'::regclass
    ) OR p.prokind = 'a'
)
SELECT part::text AS part FROM parts ORDER BY part::text COLLATE "C"
