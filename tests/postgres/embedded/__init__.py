"""Tests of `postgres/embedded/`."""
