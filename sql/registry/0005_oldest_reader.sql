-- sql/registry/0005_oldest_reader.sql: which programs may read the registry. Runs once per database.

-- One row. A later file that changes what these tables mean, so that the programs before it would read them wrongly, ends
-- with: UPDATE quart_tenants.oldest_reader SET migration = <its own number>. A file that only adds does not.
CREATE TABLE quart_tenants.oldest_reader (
    only_row  boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    -- The number of the newest file in sql/registry/ that a program must know, at least, to read these tables.
    migration integer NOT NULL
);
-- No program before this file looks here.
INSERT INTO quart_tenants.oldest_reader (migration) VALUES (5);
