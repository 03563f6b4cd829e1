-- Index of functions with a path.
CREATE FUNCTION xp_fold(t text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT lower(t)';
CREATE FUNCTION xp_key(t text) RETURNS text LANGUAGE plpgsql IMMUTABLE SET search_path FROM CURRENT
    AS 'BEGIN RETURN xp_fold(t) || length(t); END';
CREATE TABLE xp_words (word text);
INSERT INTO xp_words VALUES ('One'), ('two');
CREATE UNIQUE INDEX xp_by_key ON xp_words (xp_key(word)) WHERE xp_key(word) <> 'x';
