-- Cycle of deferred keys.
CREATE TABLE dk_heads (id integer PRIMARY KEY, person_id integer NOT NULL);
CREATE TABLE dk_people (id integer PRIMARY KEY, head_id integer NOT NULL REFERENCES dk_heads DEFERRABLE INITIALLY DEFERRED);
ALTER TABLE dk_heads ADD CONSTRAINT is_person FOREIGN KEY (person_id) REFERENCES dk_people (id) DEFERRABLE;
SET CONSTRAINTS ALL DEFERRED;
INSERT INTO dk_heads VALUES (1, 1);
INSERT INTO dk_people VALUES (1, 1), (2, 1);
SET CONSTRAINTS ALL IMMEDIATE;
