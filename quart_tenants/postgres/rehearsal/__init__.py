"""Rehearsals: missing migrations run on copies of some tenants, in a database that is dropped afterwards."""
