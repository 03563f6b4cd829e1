"""Tests of `postgres/tenants/`."""
