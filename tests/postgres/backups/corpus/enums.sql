-- Enums.
CREATE TYPE en_mood AS ENUM ('sad', 'glad');
ALTER TYPE en_mood ADD VALUE 'so so' BEFORE 'glad';
CREATE TABLE en_days (mood en_mood DEFAULT 'glad', all_moods en_mood[] DEFAULT '{sad,glad}', CHECK (mood <> 'sad' OR all_moods IS NULL));
CREATE INDEX en_sad ON en_days (mood) WHERE mood > 'sad'::en_mood;
INSERT INTO en_days DEFAULT VALUES;
INSERT INTO en_days VALUES ('sad', NULL);
