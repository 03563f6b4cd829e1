-- View and function in a circle.
CREATE TABLE vf_t (id integer);
CREATE FUNCTION vf_f() RETURNS bigint LANGUAGE sql AS 'SELECT 0';
CREATE VIEW vf_v AS SELECT id, vf_f() AS n FROM vf_t;
CREATE OR REPLACE FUNCTION vf_f() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM vf_v';
