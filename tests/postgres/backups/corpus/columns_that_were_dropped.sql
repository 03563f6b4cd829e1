-- Columns that were dropped.
CREATE TABLE cd_t (a integer, b text, c integer);
INSERT INTO cd_t VALUES (1, 'b', 3);
ALTER TABLE cd_t DROP COLUMN b;
ALTER TABLE cd_t ADD COLUMN d text DEFAULT 'd' NOT NULL;
CREATE INDEX cd_i ON cd_t (c, d);
