-- A type with operators.
CREATE TYPE op_version AS (major integer, minor integer);
CREATE FUNCTION op_lt(a op_version, b op_version) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT (a.major, a.minor) < (b.major, b.minor)';
CREATE FUNCTION op_plus(a op_version, b integer) RETURNS op_version LANGUAGE sql IMMUTABLE AS 'SELECT ROW(a.major, a.minor + b)::op_version';
CREATE OPERATOR + (LEFTARG = op_version, RIGHTARG = integer, FUNCTION = op_plus);
CREATE OPERATOR <<< (LEFTARG = op_version, RIGHTARG = op_version, FUNCTION = op_lt);
CREATE TABLE op_releases (v op_version, next op_version GENERATED ALWAYS AS (v + 1) STORED, CHECK (v <<< ROW(9, 9)::op_version));
INSERT INTO op_releases VALUES (ROW(1, 2)), (ROW(3, 4));
CREATE VIEW op_pairs AS SELECT a.v, b.v AS after FROM op_releases AS a JOIN op_releases AS b ON a.v <<< b.v;
