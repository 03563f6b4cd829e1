-- Tables without columns.
CREATE TABLE nc_none ();
INSERT INTO nc_none DEFAULT VALUES;
CREATE TABLE nc_dropped (a integer);
INSERT INTO nc_dropped VALUES (1);
ALTER TABLE nc_dropped DROP COLUMN a;
