"""Tests of `postgres/sessions/`."""
