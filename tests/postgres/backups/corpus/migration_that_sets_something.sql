-- A file that sets what its statements need.
SET LOCAL DateStyle TO 'SQL, DMY';
SET LOCAL IntervalStyle TO 'sql_standard';
CREATE TABLE ms_t (at timestamptz DEFAULT '31/12/2026 10:00+00', long interval DEFAULT '1-2');
INSERT INTO ms_t DEFAULT VALUES;
