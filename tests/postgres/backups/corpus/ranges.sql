-- Ranges.
CREATE FUNCTION ra_diff(a integer, b integer) RETURNS double precision LANGUAGE sql IMMUTABLE AS 'SELECT (a - b)::double precision';
CREATE TYPE ra_ints AS RANGE (subtype = integer, subtype_diff = ra_diff, multirange_type_name = ra_many_ints);
CREATE TABLE ra_spans (span ra_ints, spans ra_many_ints);
CREATE INDEX ra_by_span ON ra_spans USING gist (span);
INSERT INTO ra_spans VALUES ('[1,5)', '{[1,2),[7,9)}');
