-- Virtual columns.
CREATE FUNCTION vi_inner(t text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT btrim(t)';
CREATE TABLE vi_t (a integer, b integer GENERATED ALWAYS AS (a * 2) VIRTUAL, CHECK (b > 0));
INSERT INTO vi_t VALUES (1), (2);
