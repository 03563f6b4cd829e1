"""Tests of `web/routing/`."""
