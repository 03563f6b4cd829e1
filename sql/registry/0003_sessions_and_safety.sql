-- sql/registry/0003_sessions_and_safety.sql: sessions that were ended, failed logins, and a role of each tenant's own.
-- Runs once per database.

-- Sessions that are over before their time: one of them after a logout, all of a user after a new password.
-- Every worker keeps these rows in memory; sessions themselves live in their cookies.
CREATE TABLE quart_tenants.ended_sessions (
    -- No foreign key: a session must stay dead whatever becomes of its tenant.
    tenant_id   bigint NOT NULL,
    -- What the session's cookie calls its user; empty for a visitor who has not logged in.
    username    text NOT NULL,
    -- What the cookie calls itself; empty for all sessions of the user.
    session_id  text NOT NULL,
    -- Always higher, in the order of commits where all sessions of a user end, for those wait for each other: a session
    -- that was begun when this was the newest is ended by later ones only.
    generation  bigint GENERATED ALWAYS AS IDENTITY,
    -- What began well before this is over whatever its generation is: a database that was restored from a backup
    -- counts from there.
    ended_at    timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    -- When every such session is over anyway. Workers forget the row then.
    forget_at   timestamptz NOT NULL,
    -- How a reader of the feed finds what its last look did not show.
    transaction xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id(),
    PRIMARY KEY (tenant_id, username, session_id)
);
-- Serves every look at the feed.
CREATE INDEX ended_sessions_by_transaction ON quart_tenants.ended_sessions (transaction);
-- Serves every login.
CREATE INDEX ended_sessions_by_generation ON quart_tenants.ended_sessions (generation) WHERE session_id = '';
-- Serves the forgetting.
CREATE INDEX ended_sessions_by_time ON quart_tenants.ended_sessions (forget_at);

-- Logins that failed lately, counted by account, by address, and by account and address together once that account
-- has logged in from there: then strangers who guess at the account do not hold up its owner. What is counted is kept
-- as a digest only: people type their password into the wrong field.
CREATE TABLE quart_tenants.failed_logins (
    tenant_id  bigint NOT NULL REFERENCES quart_tenants.tenants (id) ON DELETE CASCADE,
    counted    bytea NOT NULL,
    failures   integer NOT NULL,
    -- The last one; long after it the counting begins anew.
    failed_at  timestamptz NOT NULL DEFAULT now(),
    -- The next try may come then.
    wait_until timestamptz NOT NULL,
    -- The row serves nobody any more then.
    forget_at  timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, counted)
);
-- Serves the forgetting.
CREATE INDEX failed_logins_by_time ON quart_tenants.failed_logins (forget_at);

-- One row once the tenants have roles of their own (TENANTS_ROLE_PER_TENANT). Roles belong to the whole server, so
-- all their names begin with a random part: two databases never share one.
CREATE TABLE quart_tenants.role_setup (
    only_row   boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    -- Owns the tenants' schemas and all that is in them, and runs their migrations. Nobody logs in as it.
    owner_name text NOT NULL
);

ALTER TABLE quart_tenants.tenants
    -- The role that the tenant's blocks enter, when each tenant has one; null for none yet.
    ADD COLUMN role_name text UNIQUE;

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
    t.role_name
FROM quart_tenants.tenants AS t
WHERE t.dropped_at IS NULL;
