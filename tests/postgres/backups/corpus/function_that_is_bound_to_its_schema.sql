-- Function that is bound to its schema.
CREATE TABLE fb_t (a integer);
INSERT INTO fb_t VALUES (1);
CREATE FUNCTION fb_count() RETURNS bigint LANGUAGE sql SET search_path FROM CURRENT AS 'SELECT count(*) FROM fb_t';
CREATE VIEW fb_v AS SELECT fb_count() AS n;
