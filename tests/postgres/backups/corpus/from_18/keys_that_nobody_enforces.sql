-- Keys that nobody enforces.
CREATE TABLE ne_p (id integer PRIMARY KEY);
CREATE TABLE ne_c (p integer, CONSTRAINT ne_k FOREIGN KEY (p) REFERENCES ne_p NOT ENFORCED, CONSTRAINT ne_x CHECK (p > 100) NOT ENFORCED);
INSERT INTO ne_c VALUES (7);
