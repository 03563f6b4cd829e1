-- Row security.
CREATE TABLE rs_t (owner text, body text);
INSERT INTO rs_t VALUES ('a', 'x'), (current_user, 'y');
CREATE FUNCTION rs_me() RETURNS text LANGUAGE sql STABLE AS 'SELECT current_user::text';
CREATE FUNCTION rs_mine(o text) RETURNS boolean LANGUAGE plpgsql STABLE AS 'BEGIN RETURN o = rs_me(); END';
CREATE POLICY rs_read ON rs_t FOR SELECT USING (rs_mine(owner));
CREATE POLICY rs_add ON rs_t AS RESTRICTIVE FOR INSERT TO PUBLIC WITH CHECK (EXISTS (SELECT FROM rs_t AS other WHERE other.owner = rs_t.owner));
ALTER TABLE rs_t ENABLE ROW LEVEL SECURITY;
CREATE TABLE rs_ready (a integer);
CREATE POLICY rs_not_on ON rs_ready USING (a > 0);
