-- A function without a schema that reads rows.
CREATE TABLE fr_rates (code text, rate numeric);
INSERT INTO fr_rates VALUES ('eur', 1.5);
CREATE FUNCTION fr_rate(c text) RETURNS numeric LANGUAGE plpgsql STABLE AS 'BEGIN RETURN (SELECT rate FROM fr_rates WHERE code = c); EXCEPTION WHEN undefined_table THEN RETURN -1; END';
CREATE MATERIALIZED VIEW fr_view AS SELECT fr_rate('eur') AS rate;
