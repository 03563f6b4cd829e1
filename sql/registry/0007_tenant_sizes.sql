-- sql/registry/0007_tenant_sizes.sql: how large the tenants were, so that their growth can be told. Runs once per database.

-- One row for each tenant and day on which somebody ran `sizes`; those of more than forty days ago are deleted by it.
CREATE TABLE quart_tenants.tenant_sizes (
    tenant_id bigint NOT NULL REFERENCES quart_tenants.tenants (id) ON DELETE CASCADE,
    -- In UTC. The last look of a day counts.
    day       date NOT NULL,
    -- Of all its tables on the disk, indexes included.
    bytes     bigint NOT NULL,
    -- Serves the growth of one tenant, and the reference.
    PRIMARY KEY (tenant_id, day)
);
-- Serves the deletion of old days.
CREATE INDEX tenant_sizes_by_day ON quart_tenants.tenant_sizes (day);
