-- Generated column.
CREATE FUNCTION gc_trim(t text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT btrim(t)';
CREATE FUNCTION gc_slug(t text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN lower(gc_trim(t)); END';
CREATE TABLE gc_pages (title text, slug text GENERATED ALWAYS AS (gc_slug(title)) STORED);
INSERT INTO gc_pages VALUES (' Hello '), (NULL), ('WORLD');
