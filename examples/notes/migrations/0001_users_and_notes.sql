CREATE TABLE users (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    email         text NOT NULL CHECK (email = lower(email)) UNIQUE,
    password_hash text NOT NULL,
    owner         boolean NOT NULL DEFAULT false -- who has signed up
);
CREATE TABLE notes (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    body       text NOT NULL CHECK (length(body) BETWEEN 1 AND 10000), -- characters
    form_id    uuid NOT NULL UNIQUE, -- a form that is sent twice makes one note
    written_by bigint REFERENCES users (id) ON DELETE SET NULL,
    written_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE attachments (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    note_id bigint NOT NULL REFERENCES notes (id) ON DELETE CASCADE,
    name    text NOT NULL,
    content bytea NOT NULL
);
CREATE INDEX attachments_by_note ON attachments (note_id);
