-- Storage.
CREATE UNLOGGED TABLE st_u (a integer) WITH (fillfactor = 70, autovacuum_enabled = false);
CREATE TABLE st_t (id integer PRIMARY KEY, body text, more text, CONSTRAINT st_more UNIQUE (more) WITH (fillfactor = 60));
ALTER TABLE st_t ALTER COLUMN body SET STORAGE EXTERNAL, ALTER COLUMN more SET COMPRESSION pglz, ALTER COLUMN id SET STATISTICS 500;
ALTER TABLE st_t ALTER COLUMN more SET (n_distinct = -0.5);
ALTER TABLE st_t SET (toast.autovacuum_enabled = false, parallel_workers = 2);
ALTER TABLE st_t REPLICA IDENTITY FULL;
ALTER TABLE st_t CLUSTER ON st_more;
INSERT INTO st_t VALUES (1, repeat('long ', 5000), 'more');
INSERT INTO st_u VALUES (1);
