-- Names that need quotes.
CREATE TABLE "Order" ("select" integer PRIMARY KEY, "it's" text, "a ""b"" c" text, "mit Umläut" text, "Ψ" integer);
CREATE INDEX "an index" ON "Order" ("it's");
CREATE VIEW "user" AS SELECT "a ""b"" c" FROM "Order";
CREATE FUNCTION "Do It"("An Arg" text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN upper("An Arg"); END';
CREATE FUNCTION nq_twice(t text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT "Do It"("Do It"(t))';
ALTER TABLE "Order" ADD CONSTRAINT "Ch;eck" CHECK (nq_twice("it's") <> 'X;');
ALTER TABLE "Order" ADD "new\line" text GENERATED ALWAYS AS (nq_twice("it's")) STORED;
INSERT INTO "Order" VALUES (1, 'o''clock', '"', 'ä', 2);
CREATE TYPE "Mood %s" AS ENUM ('it''s', '"q"');
ALTER TABLE "Order" ADD mood "Mood %s" DEFAULT 'it''s';
