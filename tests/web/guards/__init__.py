"""Tests of `web/guards/`."""
