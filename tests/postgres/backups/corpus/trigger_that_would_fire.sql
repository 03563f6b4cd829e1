-- Trigger that would fire.
CREATE TABLE tf_t (a text);
CREATE TABLE tf_total (n integer);
INSERT INTO tf_total VALUES (0);
CREATE FUNCTION tf_add() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN UPDATE tf_total SET n = n + 1; NEW.a := upper(NEW.a); RETURN NEW; END';
CREATE TRIGGER tf_add BEFORE INSERT ON tf_t FOR EACH ROW EXECUTE FUNCTION tf_add();
INSERT INTO tf_t VALUES ('a'), ('b');
UPDATE tf_t SET a = lower(a);
