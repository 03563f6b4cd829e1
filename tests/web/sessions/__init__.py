"""Tests of `web/sessions/`."""
