-- Aggregates of simple functions.
CREATE FUNCTION as_step(a text, b text) RETURNS text LANGUAGE sql IMMUTABLE
    AS 'SELECT coalesce(a || ''/'', '''') || b';
CREATE AGGREGATE as_path (text) (SFUNC = as_step, STYPE = text);
CREATE TABLE as_t (g integer, p text);
INSERT INTO as_t VALUES (1, 'a'), (1, 'b');
CREATE MATERIALIZED VIEW as_m AS SELECT g, as_path(p ORDER BY p) FILTER (WHERE p <> 'z') FROM as_t GROUP BY g;
