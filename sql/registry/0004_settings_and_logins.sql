-- sql/registry/0004_settings_and_logins.sql: what the app remembers about each tenant, and logins at the domain itself.
-- Runs once per database.

ALTER TABLE quart_tenants.tenants
    -- What every worker needs of the tenant without a query, such as its plan or its colour. The app gives it a meaning.
    ADD COLUMN settings jsonb NOT NULL DEFAULT '{}' CHECK (pg_catalog.jsonb_typeof(settings) = 'object');

-- At the end of its columns: a worker of the version before goes on reading the others.
CREATE OR REPLACE VIEW quart_tenants.living_tenants AS
SELECT
    t.id,
    t.slug,
    t.schema_name,
    t.display_name,
    t.suspended_at IS NOT NULL AS suspended,
    -- Of the newest migration; 0 for none.
    coalesce(
        (SELECT max(a.version) FROM quart_tenants.applied_migrations AS a WHERE a.schema_name = t.schema_name), 0
    ) AS version,
    ARRAY(
        SELECT d.domain FROM quart_tenants.domains AS d
        WHERE d.tenant_id = t.id AND d.verified_at IS NOT NULL ORDER BY d.domain
    ) AS domains,
    ARRAY(
        SELECT f.slug FROM quart_tenants.former_slugs AS f WHERE f.tenant_id = t.id ORDER BY f.slug
    ) AS former_slugs,
    -- In the same order; seconds since 1970.
    ARRAY(
        SELECT extract(epoch FROM f.redirect_until)::float8 FROM quart_tenants.former_slugs AS f
        WHERE f.tenant_id = t.id ORDER BY f.slug
    ) AS redirects_until,
    t.role_name,
    t.settings
FROM quart_tenants.tenants AS t
WHERE t.dropped_at IS NULL;

-- Logins at the domain itself, such as those of operators, are counted under number 0, which no tenant has. The rows of a
-- tenant that is deleted are forgotten by their time.
ALTER TABLE quart_tenants.failed_logins DROP CONSTRAINT failed_logins_tenant_id_fkey;
