-- Function that looks names up.
CREATE TABLE ln_things (id integer);
CREATE FUNCTION ln_exists(t text) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT to_regclass(t) IS NOT NULL';
CREATE TABLE ln_a_names (name text, there boolean GENERATED ALWAYS AS (ln_exists(name)) STORED);
INSERT INTO ln_a_names VALUES ('ln_things'), ('ln_nothing');
