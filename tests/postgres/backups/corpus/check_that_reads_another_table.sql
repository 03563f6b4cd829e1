-- Check that reads another table.
CREATE TABLE ct_zones (id integer PRIMARY KEY, open boolean);
CREATE FUNCTION ct_is_open(zone integer) RETURNS boolean LANGUAGE sql STABLE
    AS 'SELECT open FROM ct_zones WHERE id = zone';
INSERT INTO ct_zones VALUES (1, true), (2, true);
CREATE TABLE ct_a_shops (zone integer NOT NULL, CONSTRAINT "in an open zone" CHECK (coalesce(ct_is_open(zone), false)));
COMMENT ON CONSTRAINT "in an open zone" ON ct_a_shops IS 'or nobody comes';
INSERT INTO ct_a_shops VALUES (1), (2);
