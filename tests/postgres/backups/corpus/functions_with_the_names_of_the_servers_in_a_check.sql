-- Functions with the names of PostgreSQL's in a check.
CREATE FUNCTION length(varchar) RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 0';
CREATE TABLE nl_t (a varchar(5), CHECK (pg_catalog.length(a::text) > 0));
INSERT INTO nl_t VALUES ('a');
CREATE INDEX nl_i ON nl_t ((pg_catalog.length(a::text)));
