-- Views on views.
CREATE TABLE vv_t (id integer PRIMARY KEY, name text, size integer);
CREATE VIEW vv_large WITH (security_barrier) AS SELECT * FROM vv_t WHERE size > 1 WITH LOCAL CHECK OPTION;
CREATE VIEW vv_z AS SELECT id, name AS label FROM vv_large;
CREATE VIEW vv_a WITH (security_invoker = true) AS SELECT label, count(*) AS n FROM vv_z GROUP BY 1;
CREATE VIEW vv_by_key AS SELECT id, name, max(size) FROM vv_t GROUP BY id;
CREATE RECURSIVE VIEW vv_r (n) AS VALUES (1) UNION ALL SELECT n + 1 FROM vv_r WHERE n < 5;
ALTER VIEW vv_large ALTER COLUMN size SET DEFAULT 9;
INSERT INTO vv_t VALUES (1, 'a', 2), (2, 'b', 0);
