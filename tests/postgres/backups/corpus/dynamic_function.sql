-- Dynamic function.
CREATE FUNCTION dy_twice(n integer) RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT 2 * n';
CREATE FUNCTION dy_run(n integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE
    AS $$ DECLARE r integer; BEGIN EXECUTE 'SELECT dy_twice($1)' INTO r USING n; RETURN r; END $$;
CREATE TABLE dy_numbers (n integer, twice integer GENERATED ALWAYS AS (dy_run(n)) STORED, CHECK (dy_run(n) > n));
INSERT INTO dy_numbers VALUES (1), (21);
