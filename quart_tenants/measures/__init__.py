"""Measures: what a worker counts of its own work. Plain numbers, which cost next to nothing to count."""
