"""Tests of `postgres/registry/`."""
