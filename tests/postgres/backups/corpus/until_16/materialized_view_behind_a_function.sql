-- Materialized view behind a function.
CREATE TABLE mf_t (a integer);
INSERT INTO mf_t VALUES (1), (2);
CREATE MATERIALIZED VIEW mf_z AS SELECT sum(a) AS s FROM mf_t;
CREATE FUNCTION mf_sum() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT s FROM mf_z';
CREATE FUNCTION mf_more() RETURNS bigint LANGUAGE plpgsql STABLE AS 'BEGIN RETURN mf_sum() + 1; END';
CREATE MATERIALIZED VIEW mf_a AS SELECT mf_more() AS s;
