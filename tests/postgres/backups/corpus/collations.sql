-- Collations.
CREATE COLLATION cl_plain FROM "C";
CREATE COLLATION cl_posix (locale = 'POSIX');
CREATE TABLE cl_t (a text COLLATE cl_plain, b text, CHECK (a < 'x' COLLATE cl_posix));
CREATE INDEX cl_i ON cl_t (b COLLATE cl_posix);
CREATE DOMAIN cl_d AS text COLLATE cl_plain;
CREATE VIEW cl_v AS SELECT b COLLATE cl_plain AS b FROM cl_t;
INSERT INTO cl_t VALUES ('a', 'Z'), ('B', 'y');
