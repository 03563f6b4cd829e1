-- Functions of all kinds.
CREATE TABLE fk_t (a integer, b text DEFAULT 'b');
INSERT INTO fk_t VALUES (1);
CREATE FUNCTION fk_over(integer) RETURNS text LANGUAGE sql AS 'SELECT ''int''';
CREATE FUNCTION fk_over(text, VARIADIC more text[] DEFAULT '{}') RETURNS text LANGUAGE sql AS 'SELECT ''text''';
CREATE FUNCTION fk_any(a anyelement, b anyarray, OUT c anyelement, OUT d text) LANGUAGE sql AS 'SELECT a, b::text';
CREATE FUNCTION fk_rows(n integer DEFAULT 3) RETURNS TABLE (x integer, y text) LANGUAGE plpgsql ROWS 5 COST 200 PARALLEL SAFE STRICT AS 'BEGIN RETURN QUERY SELECT a, b FROM fk_t; END';
CREATE PROCEDURE fk_do(INOUT n integer) LANGUAGE plpgsql SECURITY DEFINER SET work_mem = '8MB' SET DateStyle = 'ISO, DMY' AS $$ BEGIN n := n + 1; END $$;
CREATE FUNCTION fk_atomic(n integer) RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT count(*) FROM fk_t WHERE a > n; END;
CREATE FUNCTION fk_return(n integer) RETURNS bigint RETURN fk_atomic(n) + 1;
CREATE VIEW fk_v AS SELECT fk_return(a) AS r, x.* FROM fk_t, LATERAL fk_rows(2) WITH ORDINALITY AS x (p, q, o);
