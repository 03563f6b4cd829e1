-- Row types of tables.
CREATE TABLE rt_people (id integer, name text);
CREATE TABLE rt_log (person rt_people, people rt_people[]);
INSERT INTO rt_people VALUES (1, 'a');
INSERT INTO rt_log SELECT p, ARRAY[p] FROM rt_people AS p;
CREATE FUNCTION rt_all() RETURNS SETOF rt_people LANGUAGE sql STABLE AS 'SELECT * FROM rt_people';
CREATE VIEW rt_seen AS SELECT name FROM rt_all();
CREATE FUNCTION rt_label(p rt_people) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT p.id || p.name';
CREATE VIEW rt_labels AS SELECT p.rt_label FROM rt_people AS p;
