-- Names of PostgreSQL's own.
CREATE FUNCTION lower(varchar) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT ''mine''';
CREATE FUNCTION array_append(integer[], integer) RETURNS integer[] LANGUAGE sql IMMUTABLE AS 'SELECT ''{0}''::integer[]';
CREATE TABLE np_t (relname text, n integer[]);
CREATE TYPE "timestamp" AS ENUM ('mine');
CREATE VIEW np_v AS SELECT pg_catalog.lower(relname) AS a, pg_catalog.array_append(n, 1) AS b, NULL::"timestamp" AS c FROM np_t;
INSERT INTO np_t VALUES ('X', '{1}');
