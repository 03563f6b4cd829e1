-- Extended statistics.
CREATE TABLE xs_t (a integer, b integer, c text);
INSERT INTO xs_t SELECT n % 3, n % 6, 'c' || n FROM generate_series(1, 50) AS n;
CREATE STATISTICS xs_s (dependencies, mcv) ON a, b FROM xs_t;
CREATE STATISTICS xs_e ON (a + b), (lower(c)) FROM xs_t;
ALTER STATISTICS xs_s SET STATISTICS 77;
COMMENT ON STATISTICS xs_s IS 'they belong together';
