-- Aggregates.
CREATE FUNCTION ag_step(a text, b text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT coalesce(a || ''/'', '''') || b';
CREATE FUNCTION ag_end(a text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT ag_step(a, ''end'')';
CREATE AGGREGATE ag_path (text) (SFUNC = ag_step, STYPE = text, FINALFUNC = ag_end);
CREATE TABLE ag_t (g integer, p text);
INSERT INTO ag_t VALUES (1, 'a'), (1, 'b');
CREATE MATERIALIZED VIEW ag_m AS SELECT g, ag_path(p ORDER BY p) FILTER (WHERE p <> 'z') FROM ag_t GROUP BY g;
