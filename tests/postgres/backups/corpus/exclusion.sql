-- Exclusion.
CREATE TABLE ex_rooms (during tstzrange, EXCLUDE USING gist (during WITH &&) WHERE (NOT isempty(during)));
INSERT INTO ex_rooms VALUES ('[2026-01-01, 2026-01-02)'), ('[2026-01-02, 2026-01-03)');
