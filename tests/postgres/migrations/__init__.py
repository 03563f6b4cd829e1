"""Tests of `postgres/migrations/`."""
