"""Tests of `web/answers/`."""
