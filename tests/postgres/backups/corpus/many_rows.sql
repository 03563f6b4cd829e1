-- Many rows.
CREATE TABLE mr_t (id integer PRIMARY KEY, body text);
INSERT INTO mr_t SELECT n, md5(n::text) FROM generate_series(1, 20000) AS n;
