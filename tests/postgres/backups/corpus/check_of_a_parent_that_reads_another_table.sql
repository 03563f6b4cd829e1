-- Check of a parent that reads another table.
CREATE TABLE cp_zones (id integer PRIMARY KEY);
CREATE FUNCTION cp_is_zone(zone integer) RETURNS boolean LANGUAGE sql STABLE
    AS 'SELECT EXISTS (SELECT FROM cp_zones WHERE id = zone)';
INSERT INTO cp_zones VALUES (1), (2);
CREATE TABLE cp_a (zone integer CONSTRAINT of_zone CHECK (cp_is_zone(zone)));
CREATE TABLE cp_a_child (CONSTRAINT of_zone CHECK (cp_is_zone(zone)), extra text) INHERITS (cp_a);
CREATE TABLE cp_a_grandchild () INHERITS (cp_a_child);
CREATE TABLE cp_a_alone (zone integer CONSTRAINT of_zone CHECK (cp_is_zone(zone)) NO INHERIT);
CREATE TABLE cp_a_parts (zone integer CONSTRAINT of_zone CHECK (cp_is_zone(zone))) PARTITION BY LIST (zone);
CREATE TABLE cp_a_part_1 PARTITION OF cp_a_parts (CONSTRAINT own CHECK (cp_is_zone(zone) IS NOT NULL)) FOR VALUES IN (1);
CREATE TABLE cp_a_part_2 PARTITION OF cp_a_parts FOR VALUES IN (2);
INSERT INTO cp_a VALUES (1);
INSERT INTO cp_a_child VALUES (2, 'x');
INSERT INTO cp_a_grandchild VALUES (1, 'y');
INSERT INTO cp_a_alone VALUES (2);
INSERT INTO cp_a_parts VALUES (1), (2);
