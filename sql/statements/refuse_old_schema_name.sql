-- Lists a statement that fails if a text in a restored schema still names the schema that it was dumped from.
-- $1 the schema's name now, $2 its name in the dump. Such a text would read and write another tenant's rows.
--
-- The catalogue shows what it keeps by number under the new name. So the old name inside quotes is a text, for example
-- nextval('acme.numbers'::text::regclass). Outside of quotes it may be the alias of a table. The body of a function is
-- all text. The name counts before a dot, alone in quotes, or in a search_path: the word "data" does not lead to schema
-- data.
--
-- Everything is found by indexes: what is in the schema through pg_depend, because no catalogue has an index by schema, and
-- the rest through the relation to which it belongs.
WITH parts AS MATERIALIZED (
    SELECT d.classid, d.objid
    FROM pg_catalog.pg_namespace AS n
    JOIN pg_catalog.pg_depend AS d ON d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.refobjid = n.oid
    WHERE n.nspname = $1
), routines AS MATERIALIZED (
    SELECT p.oid, p.prosrc, p.proconfig, p.proargdefaults, p.prosqlbody IS NULL AS is_text
    FROM parts AS x JOIN pg_catalog.pg_proc AS p ON p.oid = x.objid
    WHERE x.classid = 'pg_catalog.pg_proc'::regclass
), types AS MATERIALIZED (
    SELECT t.oid, t.typrelid, t.typdefaultbin
    FROM parts AS x JOIN pg_catalog.pg_type AS t ON t.oid = x.objid
    WHERE x.classid = 'pg_catalog.pg_type'::regclass
), relations AS MATERIALIZED (
    SELECT c.oid, c.relname
    FROM (
        SELECT objid AS oid FROM parts WHERE classid = 'pg_catalog.pg_class'::regclass
        UNION ALL
        SELECT i.indexrelid
        FROM parts AS x JOIN pg_catalog.pg_index AS i ON i.indrelid = x.objid
        WHERE x.classid = 'pg_catalog.pg_class'::regclass
        UNION ALL
        SELECT typrelid FROM types
    ) AS x
    JOIN pg_catalog.pg_class AS c ON c.oid = x.oid
), bodies (catalogue, object, words) AS (
    SELECT 'pg_catalog.pg_proc'::regclass, oid, prosrc FROM routines WHERE is_text
    UNION ALL
    SELECT 'pg_catalog.pg_proc'::regclass, p.oid,
        format('%s=%L', split_part(c.setting, '=', 1), substr(c.setting, strpos(c.setting, '=') + 1))
    FROM routines AS p CROSS JOIN unnest(p.proconfig) AS c (setting)
), deparsed (catalogue, object, words) AS (
    SELECT 'pg_catalog.pg_proc'::regclass, oid, concat_ws(' ', pg_get_function_sqlbody(oid), pg_get_expr(proargdefaults, 0))
    FROM routines
    UNION ALL
    SELECT 'pg_catalog.pg_attrdef'::regclass, d.oid, pg_get_expr(d.adbin, d.adrelid)
    FROM relations AS r JOIN pg_catalog.pg_attrdef AS d ON d.adrelid = r.oid
    UNION ALL
    SELECT 'pg_catalog.pg_constraint'::regclass, c.oid, pg_get_constraintdef(c.oid)
    FROM relations AS r JOIN pg_catalog.pg_constraint AS c ON c.conrelid = r.oid
    UNION ALL
    SELECT 'pg_catalog.pg_constraint'::regclass, c.oid, pg_get_constraintdef(c.oid)
    FROM types AS t
    -- The index by contypid is not used, because the planner only knows that nearly all are 0.
    JOIN pg_catalog.pg_depend AS d
        ON d.refclassid = 'pg_catalog.pg_type'::regclass AND d.refobjid = t.oid
        AND d.classid = 'pg_catalog.pg_constraint'::regclass
    JOIN pg_catalog.pg_constraint AS c ON c.oid = d.objid AND c.contypid = t.oid
    UNION ALL
    SELECT 'pg_catalog.pg_policy'::regclass, p.oid,
        concat_ws(' ', pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
    FROM relations AS r JOIN pg_catalog.pg_policy AS p ON p.polrelid = r.oid
    UNION ALL
    SELECT 'pg_catalog.pg_rewrite'::regclass, w.oid, pg_get_ruledef(w.oid)
    FROM relations AS r JOIN pg_catalog.pg_rewrite AS w ON w.ev_class = r.oid
    UNION ALL
    SELECT 'pg_catalog.pg_trigger'::regclass, t.oid, pg_get_triggerdef(t.oid)
    FROM relations AS r JOIN pg_catalog.pg_trigger AS t ON t.tgrelid = r.oid WHERE NOT t.tgisinternal
    UNION ALL
    SELECT 'pg_catalog.pg_class'::regclass, i.indexrelid, pg_get_indexdef(i.indexrelid)
    FROM relations AS r JOIN pg_catalog.pg_index AS i ON i.indexrelid = r.oid
    UNION ALL
    SELECT 'pg_catalog.pg_type'::regclass, oid, pg_get_expr(typdefaultbin, 0) FROM types
), texts AS (
    SELECT catalogue, object, words FROM bodies
    UNION ALL
    SELECT catalogue, object, (
        SELECT string_agg(m.parts[1], ', ')
        FROM regexp_matches(words, '"(?:[^"]|"")*"|(''(?:[^'']|'''')*'')', 'g') AS m (parts)
    )
    FROM deparsed
), names (plain, quoted) AS (
    SELECT
        regexp_replace($2::text, '([^[:alnum:]_])', '\\\1', 'g'),
        '"' || regexp_replace(replace($2::text, '"', '""'), '([^[:alnum:]_])', '\\\1', 'g') || '"'
), ways (plain, quoted) AS (
    SELECT
        concat_ws(
            '|',
            -- 3.14 is no way to schema 3, and NEW.body none to schema new.
            CASE
                WHEN $2::text ~ '^[0-9]' THEN NULL
                ELSE '(?<![[:alnum:]_"])' || plain || '\s*\.' || CASE
                    WHEN lower($2::text) NOT IN ('new', 'old', 'excluded') THEN ''
                    ELSE '\s*"?(?:' || (
                        SELECT string_agg(regexp_replace(relname, '([^[:alnum:]_])', '\\\1', 'g'), '|') FROM relations
                    ) || ')(?![[:alnum:]_])'
                END
            END,
            '[''$]' || replace(plain, '''', '''''') || '[''$]',
            'search_path''*\s*(?=[=,]|to\M)[^;]*[\s=,''(]' || plain || '(?:[\s,;'')]|$)'
        ),
        concat_ws(
            '|',
            quoted || '\s*\.',
            '[''$]' || replace(quoted, '''', '''''') || '[''$]',
            'search_path''*\s*(?=[=,]|to\M|TO\M)[^;]*[\s=,''(]' || quoted || '(?:[\s,;'')]|$)'
        )
    FROM names
)
SELECT format('DO %L', format(
    'BEGIN RAISE EXCEPTION USING ERRCODE = ''QT001'', MESSAGE = %L; END',
    format(
        'its %s names the schema %s in a text, which no renaming reaches, and would reach into that one; '
        'use unqualified names there, and in a function SET search_path FROM CURRENT',
        replace(pg_describe_object(t.catalogue, t.object, 0), quote_ident($1) || '.', ''), $2::text
    )
))
FROM texts AS t CROSS JOIN ways AS w
WHERE t.words ~ w.quoted
    -- Without quotes capital letters make no difference, unless the name has some.
    OR CASE WHEN lower($2::text) = $2::text THEN t.words ~* w.plain ELSE t.words ~ w.plain END
ORDER BY t.catalogue, t.object
LIMIT 1
