"""Tests of `postgres/pool/`."""
