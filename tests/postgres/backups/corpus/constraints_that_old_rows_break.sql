-- Constraints that old rows break.
CREATE TABLE nv_parents (id integer PRIMARY KEY);
CREATE TABLE nv_children (parent_id integer, size integer);
INSERT INTO nv_children VALUES (7, -1);
ALTER TABLE nv_children ADD CONSTRAINT has_parent FOREIGN KEY (parent_id) REFERENCES nv_parents NOT VALID;
ALTER TABLE nv_children ADD CONSTRAINT is_large CHECK (size > 0) NOT VALID;
