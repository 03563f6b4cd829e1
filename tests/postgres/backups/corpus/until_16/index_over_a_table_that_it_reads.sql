-- Index over a table that it reads.
CREATE TABLE ir_z_names (id integer, name text);
INSERT INTO ir_z_names VALUES (1, 'one');
CREATE FUNCTION ir_name(i integer) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT name FROM ir_z_names WHERE id = i';
CREATE TABLE ir_a (id integer);
INSERT INTO ir_a VALUES (1);
CREATE INDEX ir_i ON ir_a (ir_name(id));
