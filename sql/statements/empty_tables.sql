-- Empties the tables of the first schema on the path. Migrations may have put rows into them.
DO $do$
DECLARE
    tables text := (
        SELECT string_agg(c.oid::regclass::text, ', ')
        FROM pg_catalog.pg_depend AS d JOIN pg_catalog.pg_class AS c ON c.oid = d.objid AND c.relkind IN ('r', 'p')
        WHERE d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.classid = 'pg_catalog.pg_class'::regclass
            AND d.refobjid = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = pg_catalog.current_schema())
    );
BEGIN
    IF tables IS NOT NULL THEN
        EXECUTE 'TRUNCATE ' || tables;
    END IF;
END
$do$;
