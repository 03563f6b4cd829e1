"""Tests of `postgres/blocks/`."""
