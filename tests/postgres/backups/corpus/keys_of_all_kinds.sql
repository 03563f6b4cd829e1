-- Keys of all kinds.
CREATE TABLE kk_trees (id integer PRIMARY KEY, parent_id integer REFERENCES kk_trees ON DELETE CASCADE);
CREATE TABLE kk_pairs (a integer, b text, UNIQUE (a, b) DEFERRABLE);
CREATE TABLE kk_pair_keys (a integer, b text, UNIQUE NULLS NOT DISTINCT (a), UNIQUE (b) INCLUDE (a), PRIMARY KEY (a, b));
CREATE TABLE kk_refers (
    a integer, b text, tree_id integer, CONSTRAINT pair FOREIGN KEY (a, b) REFERENCES kk_pair_keys MATCH FULL,
    FOREIGN KEY (tree_id) REFERENCES kk_trees ON UPDATE SET DEFAULT ON DELETE SET NULL (tree_id)
);
INSERT INTO kk_trees VALUES (2, NULL);
INSERT INTO kk_trees VALUES (1, 2), (3, 1);
INSERT INTO kk_pairs VALUES (1, 'x');
INSERT INTO kk_pair_keys VALUES (1, 'x');
INSERT INTO kk_refers VALUES (1, 'x', 3), (NULL, NULL, NULL);
