-- Domain of functions.
CREATE FUNCTION df_valid(t text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$ SELECT t ~ '@' $$;
CREATE FUNCTION df_is_email(t text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN df_valid(t); END';
CREATE DOMAIN df_email AS text CHECK (df_is_email(VALUE));
CREATE DOMAIN df_work_email AS df_email NOT NULL DEFAULT 'a@work.test' CONSTRAINT at_work CHECK (VALUE LIKE '%work%');
CREATE TABLE df_users (email df_email, work df_work_email, others df_email[]);
INSERT INTO df_users (email, others) VALUES ('a@b.test', ARRAY['c@d.test', 'e@f.test']::df_email[]);
