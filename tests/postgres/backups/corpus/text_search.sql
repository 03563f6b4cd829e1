-- Text search.
CREATE TEXT SEARCH DICTIONARY ts_simple (TEMPLATE = simple, STOPWORDS = english);
CREATE TEXT SEARCH CONFIGURATION ts_own (COPY = simple);
ALTER TEXT SEARCH CONFIGURATION ts_own ALTER MAPPING FOR word, asciiword WITH ts_simple;
CREATE TABLE ts_t (body text, search tsvector GENERATED ALWAYS AS (to_tsvector('ts_own', body)) STORED);
CREATE INDEX ts_i ON ts_t USING gin (search);
INSERT INTO ts_t VALUES ('The quick brown fox');
