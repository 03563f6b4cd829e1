-- Views that change after.
CREATE TABLE va_t (id integer, name text);
CREATE VIEW va_v AS SELECT * FROM va_t;
ALTER TABLE va_t RENAME COLUMN name TO title;
ALTER TABLE va_t ADD COLUMN more text;
ALTER TABLE va_t RENAME TO va_renamed;
