-- Functions that wait for each other.
CREATE FUNCTION fw_even(n integer) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN n = 0 OR fw_odd(n - 1); END';
CREATE FUNCTION fw_odd(n integer) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN n <> 0 AND fw_even(n - 1); END';
CREATE TABLE fw_t (n integer CHECK (fw_even(n)), odd boolean GENERATED ALWAYS AS (fw_odd(n)) STORED);
INSERT INTO fw_t VALUES (4);
