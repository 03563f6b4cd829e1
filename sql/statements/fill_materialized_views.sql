-- Fills materialized views. One may call a function that reads another one, which no dependency tells. So each is
-- tried again as long as others were filled.
-- The setting quart_tenants.views has their names as an array in JSON.
DO $do$
DECLARE
    waiting text[] := ARRAY(
        SELECT value FROM pg_catalog.json_array_elements_text(pg_catalog.current_setting('quart_tenants.views')::json)
            AS value
    );
    empty_ones text[];
    name text;
BEGIN
    WHILE waiting <> '{}' LOOP
        empty_ones := '{}';
        FOREACH name IN ARRAY waiting LOOP
            BEGIN
                EXECUTE 'REFRESH MATERIALIZED VIEW ' || name;
            EXCEPTION WHEN object_not_in_prerequisite_state THEN
                IF empty_ones = waiting[:pg_catalog.cardinality(waiting) - 1] THEN
                    RAISE;
                END IF;
                empty_ones := empty_ones || name;
            END;
        END LOOP;
        waiting := empty_ones;
    END LOOP;
END
$do$;
