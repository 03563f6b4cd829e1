-- Rights that everybody has lost, the owner too.
CREATE FUNCTION rg_f() RETURNS integer LANGUAGE sql AS 'SELECT 1';
REVOKE ALL ON FUNCTION rg_f() FROM PUBLIC, CURRENT_USER;
