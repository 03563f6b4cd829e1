-- Names with a line end.
CREATE TABLE "le
t" ("a
b" integer);
INSERT INTO "le
t" VALUES (1);
CREATE MATERIALIZED VIEW "le
v" AS SELECT "a
b" AS one FROM "le
t";
