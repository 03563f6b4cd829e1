-- Composites.
CREATE TYPE co_point AS (x integer, y numeric(5, 2));
CREATE TYPE co_line AS (start co_point, "end" co_point, name text COLLATE "C");
CREATE TABLE co_lines (line co_line, points co_point[]);
INSERT INTO co_lines VALUES (ROW(ROW(1, 2.5), ROW(3, 4), 'a "b" c'), ARRAY[ROW(1, 1), NULL]::co_point[]);
ALTER TYPE co_point ADD ATTRIBUTE z text CASCADE;
CREATE INDEX co_by_name ON co_lines (((line).name));
