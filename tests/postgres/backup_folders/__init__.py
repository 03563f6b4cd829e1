"""Tests of a folder with the backups of all tenants."""
