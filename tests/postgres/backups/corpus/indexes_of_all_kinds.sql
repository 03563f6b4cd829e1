-- Indexes of all kinds.
CREATE TABLE ik_t (id integer, words text[], body tsvector, at timestamptz, place point, name text);
CREATE INDEX ik_gin ON ik_t USING gin (words) WITH (fastupdate = off);
CREATE INDEX ik_search ON ik_t USING gin (body);
CREATE INDEX ik_brin ON ik_t USING brin (at) WITH (pages_per_range = 8);
CREATE INDEX ik_gist ON ik_t USING gist (place);
CREATE INDEX ik_hash ON ik_t USING hash (id);
CREATE INDEX ik_spgist ON ik_t USING spgist (name);
CREATE INDEX ik_cover ON ik_t (id DESC NULLS LAST) INCLUDE (name);
CREATE INDEX ik_pattern ON ik_t (name text_pattern_ops, name COLLATE "C");
INSERT INTO ik_t VALUES (1, '{a,b}', 'a:1 b:2', '2026-01-01', '(1,2)', 'n');
