-- Index of functions.
CREATE FUNCTION xf_fold(t text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT lower(t)';
CREATE FUNCTION xf_key(t text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN xf_fold(t) || length(t); END';
CREATE FUNCTION xf_wanted(t text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN xf_fold(t) <> ''x''; END';
CREATE TABLE xf_words (word text);
INSERT INTO xf_words VALUES ('One'), ('X'), ('two');
CREATE UNIQUE INDEX xf_by_key ON xf_words (xf_key(word)) WHERE xf_wanted(word);
