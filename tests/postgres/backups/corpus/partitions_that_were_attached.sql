-- Partitions that were attached.
CREATE TYPE pa_kind AS ENUM ('a', 'b');
CREATE TABLE pa_all (kind pa_kind, n integer, extra text) PARTITION BY LIST (kind);
CREATE TABLE pa_a (extra text, gone integer, n integer DEFAULT 5, kind pa_kind);
ALTER TABLE pa_a DROP COLUMN gone;
INSERT INTO pa_a (kind, extra) VALUES ('a', 'x');
ALTER TABLE pa_all ATTACH PARTITION pa_a FOR VALUES IN ('a', NULL);
CREATE TABLE pa_b (LIKE pa_all INCLUDING ALL);
CREATE FUNCTION pa_f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.extra := ''f''; RETURN NEW; END';
ALTER TABLE pa_all ATTACH PARTITION pa_b FOR VALUES IN ('b');
CREATE TRIGGER pa_t BEFORE INSERT ON pa_all FOR EACH ROW EXECUTE FUNCTION pa_f();
ALTER TABLE pa_b DISABLE TRIGGER pa_t;
INSERT INTO pa_all VALUES ('b', 1, 'own'), (NULL, 2, 'none');
