-- Partition key of a function.
CREATE FUNCTION pk_inner(t text) RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT length(t)';
CREATE FUNCTION pk_bucket(t text) RETURNS integer LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN pk_inner(t) % 2; END';
CREATE TABLE pk_all (t text) PARTITION BY LIST (pk_bucket(t));
CREATE TABLE pk_even PARTITION OF pk_all FOR VALUES IN (0);
CREATE TABLE pk_odd PARTITION OF pk_all FOR VALUES IN (1);
INSERT INTO pk_all VALUES ('a'), ('ab'), ('abc');
