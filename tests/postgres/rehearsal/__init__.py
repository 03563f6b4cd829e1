"""Tests of `postgres/rehearsal/`."""
