"""Tests of `postgres/doctor/`."""
