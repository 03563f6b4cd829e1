"""Tests of `postgres/driver/`."""
