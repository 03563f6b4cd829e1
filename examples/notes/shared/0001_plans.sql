-- What every tenant reads: the plans, and trigrams for the search where the server has them.
CREATE TABLE plans (
    name       text PRIMARY KEY,
    notes      integer NOT NULL CHECK (notes > 0) -- how many a tenant may have
);
INSERT INTO plans (name, notes) VALUES ('small', 100), ('large', 10000);
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_available_extensions WHERE name = 'pg_trgm') THEN
        CREATE EXTENSION pg_trgm;
    END IF;
END
$$;
