-- Check of functions.
CREATE FUNCTION cf_digits(t text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT regexp_replace(t, '\D', '', 'g') $$;
CREATE FUNCTION cf_is_phone(t text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE
    AS 'BEGIN RETURN length(cf_digits(t)) > 2; END';
CREATE TABLE cf_people (phone text CONSTRAINT phone_is_one CHECK (cf_is_phone(phone)));
INSERT INTO cf_people VALUES ('+49 30 1234'), (NULL);
