-- Drops the CHECKs and foreign keys of the first schema on the path before its rows are loaded, switches its triggers
-- off, and notes how to bring all of them back (add_again.sql).
-- A CHECK may call a function that reads another table, whose rows come later; and rows that were right when they were
-- written may break a CHECK of today. So they are added after all rows. A dump of pg_dump has its keys and triggers
-- behind the rows anyway.
DO $do$
DECLARE
    schema_oid oid := (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = pg_catalog.current_schema());
    noted text[] := '{}';
    part record;
BEGIN
    FOR part IN
        SELECT g.tgrelid::regclass AS place, g.tgname, g.tgenabled
        FROM pg_catalog.pg_depend AS d JOIN pg_catalog.pg_trigger AS g ON g.tgrelid = d.objid AND NOT g.tgisinternal
        JOIN pg_catalog.pg_class AS c ON c.oid = g.tgrelid AND c.relkind IN ('r', 'p')
        WHERE d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.refobjid = schema_oid
            AND d.classid = 'pg_catalog.pg_class'::regclass AND g.tgenabled <> 'D'
    LOOP
        EXECUTE format('ALTER TABLE ONLY %s DISABLE TRIGGER %I', part.place, part.tgname);
        noted := noted || format(
            'ALTER TABLE ONLY %s ENABLE %s TRIGGER %I', part.place,
            CASE part.tgenabled WHEN 'R' THEN 'REPLICA' WHEN 'A' THEN 'ALWAYS' END, part.tgname
        );
    END LOOP;
    LOOP
        -- A child's own CHECK can be dropped when that of the parent is gone.
        SELECT
            c.conrelid::regclass AS place,
            c.conname,
            pg_catalog.pg_get_constraintdef(c.oid) AS definition,
            pg_catalog.obj_description(c.oid, 'pg_constraint') AS words
        INTO part
        FROM pg_catalog.pg_depend AS d
        JOIN pg_catalog.pg_constraint AS c ON c.conrelid = d.objid
            -- A key to a shared table stays: without it that table would be locked against everybody, until the commit.
            AND (
                c.contype = 'c' OR c.contype = 'n' AND NOT c.convalidated
                OR c.contype = 'f' AND (SELECT relnamespace FROM pg_catalog.pg_class WHERE oid = c.confrelid) = schema_oid
            )
        WHERE d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.refobjid = schema_oid
            AND d.classid = 'pg_catalog.pg_class'::regclass AND c.coninhcount = 0 AND c.conparentid = 0
        LIMIT 1;
        EXIT WHEN NOT FOUND;
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', part.place, part.conname);
        -- In the opposite order, because a parent's CHECK takes over that of its child, and not the other way round.
        IF part.words IS NOT NULL THEN
            noted := format('COMMENT ON CONSTRAINT %I ON %s IS %L', part.conname, part.place, part.words) || noted;
        END IF;
        noted := format('ALTER TABLE %s ADD CONSTRAINT %I %s', part.place, part.conname, part.definition) || noted;
    END LOOP;
    FOR part IN
        SELECT
            c.contypid::regtype AS place,
            c.conname,
            pg_catalog.pg_get_constraintdef(c.oid) AS definition,
            pg_catalog.obj_description(c.oid, 'pg_constraint') AS words
        FROM pg_catalog.pg_depend AS d
        -- Not by contypid: the planner only knows that nearly all are 0, and does not use its index.
        JOIN pg_catalog.pg_depend AS k
            ON k.refclassid = d.classid AND k.refobjid = d.objid AND k.classid = 'pg_catalog.pg_constraint'::regclass
        JOIN pg_catalog.pg_constraint AS c ON c.oid = k.objid AND c.contypid = d.objid AND c.contype = 'c'
        WHERE d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.refobjid = schema_oid
            AND d.classid = 'pg_catalog.pg_type'::regclass
        ORDER BY c.oid
    LOOP
        -- PostgreSQL adds none to a domain that is a part of another type of a column. Then it stays as it is.
        BEGIN
            EXECUTE format('ALTER DOMAIN %s DROP CONSTRAINT %I', part.place, part.conname);
            EXECUTE format('ALTER DOMAIN %s ADD CONSTRAINT %I %s', part.place, part.conname, part.definition);
            EXECUTE format('ALTER DOMAIN %s DROP CONSTRAINT %I', part.place, part.conname);
            noted := noted
                || format('ALTER DOMAIN %s ADD CONSTRAINT %I %s', part.place, part.conname, part.definition);
            IF part.words IS NOT NULL THEN
                noted := noted
                    || format('COMMENT ON CONSTRAINT %I ON DOMAIN %s IS %L', part.conname, part.place, part.words);
            END IF;
        EXCEPTION WHEN feature_not_supported THEN
            CONTINUE;
        END;
    END LOOP;
    PERFORM pg_catalog.set_config('quart_tenants.aside', pg_catalog.to_json(noted)::text, true);
END
$do$;
