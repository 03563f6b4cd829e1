-- Operator class.
CREATE FUNCTION oc_compare(a text, b text) RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT bttextcmp(reverse(a), reverse(b))';
CREATE FUNCTION oc_lt(a text, b text) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT oc_compare(a, b) < 0';
CREATE FUNCTION oc_eq(a text, b text) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT oc_compare(a, b) = 0';
CREATE OPERATOR <# (LEFTARG = text, RIGHTARG = text, FUNCTION = oc_lt);
CREATE OPERATOR =# (LEFTARG = text, RIGHTARG = text, FUNCTION = oc_eq);
CREATE OPERATOR CLASS oc_reversed FOR TYPE text USING btree AS OPERATOR 1 <#, OPERATOR 3 =#, FUNCTION 1 oc_compare (text, text);
CREATE TABLE oc_words (word text);
INSERT INTO oc_words VALUES ('ab'), ('ba'), ('zz');
CREATE INDEX oc_by_end ON oc_words (word oc_reversed);
