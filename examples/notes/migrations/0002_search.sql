-- The search is the same without this index, and slower.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'pg_trgm') THEN
        CREATE INDEX notes_by_word ON notes USING gin (body gin_trgm_ops);
    END IF;
END
$$;
