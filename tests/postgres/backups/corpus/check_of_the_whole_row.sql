-- Check of the whole row.
CREATE TABLE cw_limits (most integer);
INSERT INTO cw_limits VALUES (10);
CREATE TABLE cw_carts (id integer PRIMARY KEY, count integer);
CREATE FUNCTION cw_fits(cart cw_carts) RETURNS boolean LANGUAGE sql STABLE
    AS 'SELECT cart.count <= most FROM cw_limits';
ALTER TABLE cw_carts ADD CONSTRAINT fits CHECK (coalesce(cw_fits(cw_carts.*), false)) NOT VALID;
INSERT INTO cw_carts VALUES (1, 10);
ALTER TABLE cw_carts VALIDATE CONSTRAINT fits;
