"""Tests of what a worker counts of its own work."""
