-- A trigger that lets nobody empty its table: neither does a restore.
CREATE TABLE ta_audit (x integer);
CREATE FUNCTION ta_no() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''append only''; END';
CREATE TRIGGER ta_no BEFORE TRUNCATE ON ta_audit EXECUTE FUNCTION ta_no();
INSERT INTO ta_audit VALUES (1);
