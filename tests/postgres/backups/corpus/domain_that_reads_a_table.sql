-- Domain that reads a table.
CREATE TABLE dr_z_codes (code text PRIMARY KEY);
CREATE FUNCTION dr_known(c text) RETURNS boolean LANGUAGE sql STABLE
    AS 'SELECT EXISTS (SELECT FROM dr_z_codes WHERE code = c)';
CREATE DOMAIN dr_code AS text CONSTRAINT known CHECK (dr_known(VALUE));
COMMENT ON CONSTRAINT known ON DOMAIN dr_code IS 'of the list';
INSERT INTO dr_z_codes VALUES ('de'), ('fr');
CREATE TABLE dr_a_people (code dr_code);
INSERT INTO dr_a_people VALUES ('de');
