-- Domains.
CREATE DOMAIN do_cents AS bigint CHECK (VALUE >= 0);
CREATE DOMAIN do_list AS integer[] CHECK (cardinality(VALUE) < 5);
CREATE TABLE do_bills (total do_cents DEFAULT 0, list do_list, parts do_cents[]);
INSERT INTO do_bills VALUES (5, '{1,2}', '{1,2,3}');
ALTER DOMAIN do_cents ADD CONSTRAINT not_too_many CHECK (VALUE < 1000) NOT VALID;
