-- sql/registry/0006_ready_tenants.sql: empty tenants that are made in advance, and who has run which file.
-- Runs once per database.

-- Schemas with all tables and no tenant. They are no rows of quart_tenants.tenants, so that nobody serves, lists, counts
-- or backs them up. A new tenant takes one by renaming it, and the row goes.
CREATE TABLE quart_tenants.ready_schemas (
    -- Never reused. The schema is called quart_tenants_ready_ and this number.
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- The newest file that has run in it. A program with fewer files leaves it alone.
    version integer NOT NULL,
    -- A digest of all that it was made from: the files, the shared schemas and what has run there, the owner role.
    recipe  text NOT NULL,
    made_at timestamptz NOT NULL DEFAULT pg_catalog.now()
);

-- Serves every create: has a file run with another text for a tenant? Its first and its last entry for a version say so.
-- The registry, the shared schemas, the trash and the ready schemas have names that no tenant may have.
CREATE INDEX applied_migrations_by_file ON quart_tenants.applied_migrations (version, sha256)
    WHERE schema_name <> 'quart_tenants' AND NOT pg_catalog.starts_with(schema_name, 'quart_tenants_');
