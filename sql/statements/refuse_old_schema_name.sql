-- Lists a statement that fails if a text in a restored schema still names the schema that it was dumped from.
-- $1 the schema's name now, $2 its name in the dump. Such a text would read and write another tenant's rows.
--
-- The catalogue shows what it keeps by number under the new name. So the old name inside quotes is a text, for example
-- nextval('acme.numbers'::text::regclass). Outside of quotes it may be the alias of a table. The body of a function is
-- all text. The name counts before a dot, alone in quotes, or in a search_path: the word "data" does not lead to schema
-- data.
WITH target AS (
    SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = $1
), relations AS (
    SELECT c.oid, c.relname FROM pg_catalog.pg_class AS c JOIN target ON target.oid = c.relnamespace
), bodies (catalogue, object, words) AS (
    SELECT 'pg_catalog.pg_proc'::regclass, p.oid, p.prosrc
    FROM pg_catalog.pg_proc AS p JOIN target ON target.oid = p.pronamespace WHERE p.prosqlbody IS NULL
    UNION ALL
    SELECT 'pg_catalog.pg_proc'::regclass, p.oid,
        format('%s=%L', split_part(c.setting, '=', 1), substr(c.setting, strpos(c.setting, '=') + 1))
    FROM pg_catalog.pg_proc AS p JOIN target ON target.oid = p.pronamespace
    CROSS JOIN unnest(p.proconfig) AS c (setting)
), deparsed (catalogue, object, words) AS (
    SELECT 'pg_catalog.pg_proc'::regclass, p.oid,
        concat_ws(' ', pg_get_function_sqlbody(p.oid), pg_get_expr(p.proargdefaults, 0))
    FROM pg_catalog.pg_proc AS p JOIN target ON target.oid = p.pronamespace
    UNION ALL
    SELECT 'pg_catalog.pg_attrdef'::regclass, d.oid, pg_get_expr(d.adbin, d.adrelid)
    FROM pg_catalog.pg_attrdef AS d JOIN relations AS r ON r.oid = d.adrelid
    UNION ALL
    SELECT 'pg_catalog.pg_constraint'::regclass, c.oid, pg_get_constraintdef(c.oid)
    FROM pg_catalog.pg_constraint AS c JOIN target ON target.oid = c.connamespace
    UNION ALL
    SELECT 'pg_catalog.pg_policy'::regclass, p.oid,
        concat_ws(' ', pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
    FROM pg_catalog.pg_policy AS p JOIN relations AS r ON r.oid = p.polrelid
    UNION ALL
    SELECT 'pg_catalog.pg_rewrite'::regclass, w.oid, pg_get_ruledef(w.oid)
    FROM pg_catalog.pg_rewrite AS w JOIN relations AS r ON r.oid = w.ev_class
    UNION ALL
    SELECT 'pg_catalog.pg_trigger'::regclass, t.oid, pg_get_triggerdef(t.oid)
    FROM pg_catalog.pg_trigger AS t JOIN relations AS r ON r.oid = t.tgrelid WHERE NOT t.tgisinternal
    UNION ALL
    SELECT 'pg_catalog.pg_class'::regclass, i.indexrelid, pg_get_indexdef(i.indexrelid)
    FROM pg_catalog.pg_index AS i JOIN relations AS r ON r.oid = i.indexrelid
    UNION ALL
    SELECT 'pg_catalog.pg_type'::regclass, t.oid, pg_get_expr(t.typdefaultbin, 0)
    FROM pg_catalog.pg_type AS t JOIN target ON target.oid = t.typnamespace
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
