-- Defaults of functions.
CREATE TABLE dd_settings (prefix text);
INSERT INTO dd_settings VALUES ('R-');
CREATE SEQUENCE dd_n;
CREATE FUNCTION dd_number() RETURNS text LANGUAGE sql AS 'SELECT prefix || nextval(''dd_n'') FROM dd_settings';
CREATE TABLE dd_bills (number text DEFAULT dd_number(), at timestamptz DEFAULT now(), by text DEFAULT current_user);
INSERT INTO dd_bills (by) VALUES ('x');
