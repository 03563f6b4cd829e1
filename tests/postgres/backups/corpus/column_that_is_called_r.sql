-- A column that is called r, beside others.
CREATE TABLE cr_t (r integer, more text, twice integer GENERATED ALWAYS AS (2 * r) STORED);
INSERT INTO cr_t VALUES (1, 'a'), (2, 'b');
