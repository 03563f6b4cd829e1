"""Answers: errors as problem documents, rows as JSON, streams, and reads that are tried again."""
