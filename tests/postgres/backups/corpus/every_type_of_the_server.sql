-- Every type of PostgreSQL.
CREATE TABLE et_all (
    b boolean, s smallint, i integer, l bigint, n numeric, r real, d double precision, m money, c char(5), v varchar(10),
    t text, ba bytea, ts timestamp, tz timestamptz, da date, ti time, tt timetz, iv interval, u uuid, j json, jb jsonb,
    ip inet, ci cidr, ma macaddr, bi bit(3), vb varbit, tv tsvector, tq tsquery, po point, bo box, pa path, pg polygon, ck circle,
    ir int4range, mr datemultirange, nm name, ch "char", x xml, o oid, lsn pg_lsn, jp jsonpath, ar text[][], cl regclass, pr regprocedure, ty regtype
);
INSERT INTO et_all (b, n, r, d, t, ba, ts, tz, da, iv, jb, ar, cl, pr, ty, c, m) VALUES (
    true, 'NaN', 'Infinity', '-0', E'tab\tnew\nline\\ back\r \x01', '\x00ff5c', 'infinity', '2026-03-29 02:30+01', '0044-03-15 BC',
    '1 year -2 days 03:04:05.678901', '{"a": [1, null, "\u00e9"]}', '{{a,NULL},{"NULL",""}}', 'et_all', 'lower(text)', 'et_all', 'ab', 12.34
), (NULL, 1e100, 1e-37, 1e308, '', '', '0001-01-01', '-infinity', 'infinity', '-infinity'::text::interval, 'null', '{}', NULL, NULL, 'text[]', '', -1),
(false, -0.00000000001, 0, 0.1, '\N', '\\', now(), now(), now(), '0', '[]', '{}', 'et_all', NULL, 'et_all[]', NULL, 0);
