-- Materialized view behind a function with a path.
CREATE TABLE mp_t (a integer);
INSERT INTO mp_t VALUES (1), (2);
CREATE MATERIALIZED VIEW mp_z AS SELECT sum(a) AS s FROM mp_t;
CREATE FUNCTION mp_sum() RETURNS bigint LANGUAGE plpgsql STABLE SET search_path FROM CURRENT
    AS 'BEGIN RETURN (SELECT s + 1 FROM mp_z); END';
CREATE MATERIALIZED VIEW mp_a AS SELECT mp_sum() AS s;
