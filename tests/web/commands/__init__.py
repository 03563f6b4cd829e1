"""Tests of `web/commands/`."""
