-- Fills materialized views. One may call a function that reads another one, which no dependency tells. So each is
-- tried again as long as others were filled. One that cannot be filled from today's rows stays empty.
-- The setting quart_tenants.views has their names as an array in JSON.
DO $do$
DECLARE
    waiting text[] := ARRAY(
        SELECT value FROM pg_catalog.json_array_elements_text(pg_catalog.current_setting('quart_tenants.views')::json)
            AS value
    );
    reasons text[];
    empty_ones text[];
    name text;
BEGIN
    WHILE waiting <> '{}' LOOP
        empty_ones := '{}';
        reasons := '{}';
        FOREACH name IN ARRAY waiting LOOP
            BEGIN
                EXECUTE 'REFRESH MATERIALIZED VIEW ' || name;
            EXCEPTION WHEN OTHERS THEN
                -- A full disk, a lock, a shutdown.
                IF SQLSTATE ~ '^(40|53|55P|57|58|XX)' THEN
                    RAISE;
                END IF;
                empty_ones := empty_ones || name;
                reasons := reasons || format('the materialized view %s stays empty: %s', name, SQLERRM);
            END;
        END LOOP;
        IF empty_ones = waiting THEN
            FOREACH name IN ARRAY reasons LOOP
                RAISE WARNING USING ERRCODE = 'QT004', MESSAGE = name;
            END LOOP;
            EXIT;
        END IF;
        waiting := empty_ones;
    END LOOP;
END
$do$;
