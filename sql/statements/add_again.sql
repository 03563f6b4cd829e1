-- Adds what set_aside.sql has dropped. A CHECK or a key that rows of the backup break, or a CHECK that fails on them, is
-- added as NOT VALID: they were there, too, and it holds for new rows.
DO $do$
DECLARE
    noted text;
BEGIN
    FOR noted IN
        SELECT value FROM pg_catalog.json_array_elements_text(
            pg_catalog.current_setting('quart_tenants.aside')::json
        ) AS value
    LOOP
        BEGIN
            EXECUTE noted;
        EXCEPTION WHEN OTHERS THEN
            -- A full disk, a lock, a shutdown.
            IF SQLSTATE ~ '^(40|53|55P|57|58|XX)' THEN
                RAISE;
            END IF;
            EXECUTE noted || ' NOT VALID';
            RAISE WARNING USING ERRCODE = 'QT004', MESSAGE = format('old rows break what now holds for new ones: %s', noted);
        END;
    END LOOP;
END
$do$;
