-- sql/registry/0001_registry.sql: which tenants exist. Runs once per database.
-- Every name is written in full: the registry must not depend on anybody's search_path.

-- One row a customer.
CREATE TABLE quart_tenants.tenants (
    -- Never reused: a session of a dropped tenant stays worthless to the next of that name.
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- The label before the domain.
    slug         text NOT NULL UNIQUE,
    -- As PostgreSQL stores it. Unique, or two customers would share their rows.
    schema_name  text NOT NULL UNIQUE,
    display_name text NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now()
);

-- The feed that every worker reads about once a second.
CREATE TABLE quart_tenants.changes (
    -- Counts up without a gap in the order of commits: writers queue on a lock of this table,
    -- because a sequence hands out numbers before the commit and a reader would miss the late one.
    revision   bigint PRIMARY KEY,
    -- No foreign key: the row outlives the tenant, that is how a drop is told.
    tenant_id  bigint NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now()
);
-- Where every reader starts; no tenant has number 0.
INSERT INTO quart_tenants.changes (revision, tenant_id) VALUES (0, 0);

-- Which names were free again when. A worker may remember a dropped tenant for as long as it cannot
-- read the feed, and it enters a schema by its name: the next tenant must not have it meanwhile.
CREATE TABLE quart_tenants.dropped_tenants (
    tenant_id   bigint PRIMARY KEY,
    slug        text NOT NULL,
    schema_name text NOT NULL,
    dropped_at  timestamptz NOT NULL DEFAULT now()
);
-- Serves every create and adopt: was this name dropped a moment ago?
CREATE INDEX dropped_tenants_by_time ON quart_tenants.dropped_tenants (dropped_at);

-- Holds a row only while a transaction makes a tenant. The row refers to no tenant, which is checked at
-- COMMIT: a migration that ends the transaction early fails there, and leaves nothing half done.
CREATE TABLE quart_tenants.unfinished (
    tenant_id bigint NOT NULL REFERENCES quart_tenants.tenants (id) DEFERRABLE INITIALLY DEFERRED
);

-- Which migration ran in which schema, the registry's own included. Kept here and not in each
-- schema, so that one query tells the versions of all tenants and adopting changes nothing.
CREATE TABLE quart_tenants.applied_migrations (
    schema_name text NOT NULL,
    version     integer NOT NULL,
    name        text NOT NULL,
    -- Of the file, in hex: an applied file that was edited later is refused.
    sha256      text NOT NULL,
    applied_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (schema_name, version)
);
