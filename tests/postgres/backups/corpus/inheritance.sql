-- Inheritance.
CREATE TABLE ih_a (id integer PRIMARY KEY, note text DEFAULT 'a', CONSTRAINT positive CHECK (id > 0));
CREATE TABLE ih_b (extra text, CONSTRAINT only_here CHECK (extra <> '') NO INHERIT);
CREATE TABLE ih_ab (note text DEFAULT 'ab', own integer) INHERITS (ih_a, ih_b);
INSERT INTO ih_a VALUES (1);
INSERT INTO ih_ab VALUES (2, 'x', '', 3);
ALTER TABLE ONLY ih_a ALTER COLUMN note SET DEFAULT 'later';
