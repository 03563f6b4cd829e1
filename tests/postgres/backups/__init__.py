"""Tests of `postgres/backups/`."""
