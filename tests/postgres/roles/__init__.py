"""Tests of `postgres/roles/`."""
